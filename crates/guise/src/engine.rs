//! `--engine`: from a name to an engine that works on this host.

use clap::ValueEnum;
use guise_engine::Engine;
use guise_engine_kvm::{KvmEngine, probe};
use guise_engine_soft::{SoftEngine, Tier};

use crate::Failure;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineChoice {
    /// kvm where it is truly usable, soft elsewhere
    Auto,
    /// The processor's own virtualization
    Kvm,
    /// Guise's own engine
    Soft,
    /// Its interpreter alone
    Interp,
    /// Both tiers of soft, compared: for debugging it, with one vCPU
    #[value(hide = true)]
    Lockstep,
}

/// An engine, and what there is to say about it once the guest runs.
pub struct Chosen {
    pub engine: Box<dyn Engine>,
    pub remark: Option<String>,
}

impl Chosen {
    fn without_remark(engine: impl Engine + 'static) -> Chosen {
        Chosen { engine: Box::new(engine), remark: None }
    }
}

/// Makes the engine, or says why this host has none.
pub fn choose(choice: EngineChoice) -> Result<Chosen, Failure> {
    let software = |tier| Ok(Chosen::without_remark(SoftEngine::new(tier)));
    match choice {
        EngineChoice::Auto => match probe::usable_engine() {
            Ok(engine) => Ok(Chosen::without_remark(engine)),
            Err(remark) => Ok(Chosen { remark, ..choose(EngineChoice::Soft)? }),
        },
        EngineChoice::Kvm => Ok(Chosen::without_remark(KvmEngine::new().map_err(Failure::failed)?)),
        EngineChoice::Soft => software(Tier::Translator),
        EngineChoice::Lockstep => software(Tier::Lockstep),
        EngineChoice::Interp => software(Tier::Interpreter),
    }
}
