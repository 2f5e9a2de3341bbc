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
        EngineChoice::Auto => match usable_kvm() {
            Ok(engine) => Ok(Chosen::without_remark(engine)),
            Err(remark) => Ok(Chosen { remark, ..choose(EngineChoice::Soft)? }),
        },
        EngineChoice::Kvm => Ok(Chosen::without_remark(KvmEngine::new().map_err(Failure::failed)?)),
        EngineChoice::Soft => software(Tier::Translator),
        EngineChoice::Lockstep => software(Tier::Lockstep),
        EngineChoice::Interp => software(Tier::Interpreter),
    }
}

/// A /dev/kvm that runs what kernels consist of, at a useful speed. One that does not is
/// worth a word: who has the device expects it to be used.
fn usable_kvm() -> Result<KvmEngine, Option<String>> {
    let engine = KvmEngine::new().map_err(|_| None)?;
    let reason = match probe::run(&engine) {
        Ok(verdict) if verdict.usable() => return Ok(engine),
        Ok(verdict) => verdict.reason().unwrap_or_default(),
        Err(error) => error.to_string(),
    };
    // The advice of an error is for those who insist on KVM; here it is taken already.
    let reason = reason.split("; use --engine").next().unwrap_or_default();
    Err(Some(format!("the software engine runs this guest; this host's KVM cannot: {reason}")))
}
