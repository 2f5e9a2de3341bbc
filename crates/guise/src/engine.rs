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

/// Makes the engine, or says why this host has none.
pub fn choose(choice: EngineChoice) -> Result<Box<dyn Engine>, Failure> {
    match choice {
        EngineChoice::Auto => match usable_kvm() {
            Some(engine) => Ok(Box::new(engine)),
            None => choose(EngineChoice::Soft),
        },
        EngineChoice::Kvm => Ok(Box::new(KvmEngine::new().map_err(Failure::failed)?)),
        EngineChoice::Soft => Ok(Box::new(SoftEngine::new(Tier::Translator))),
        EngineChoice::Lockstep => Ok(Box::new(SoftEngine::new(Tier::Lockstep))),
        EngineChoice::Interp => Ok(Box::new(SoftEngine::new(Tier::Interpreter))),
    }
}

/// A /dev/kvm that runs what kernels consist of, at a useful speed. One that does not is
/// worth a word: who has the device expects it to be used.
fn usable_kvm() -> Option<KvmEngine> {
    let engine = KvmEngine::new().ok()?;
    let reason = match probe::run(&engine) {
        Ok(verdict) if verdict.usable() => return Some(engine),
        Ok(verdict) => verdict.reason().unwrap_or_default(),
        Err(error) => error.to_string(),
    };
    // The advice of an error is for those who insist on KVM; here it is taken already.
    let reason = reason.split("; use --engine").next().unwrap_or_default();
    eprintln!("guise: the software engine runs this guest; this host's KVM cannot: {reason}");
    None
}
