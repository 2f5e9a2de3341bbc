//! `--engine`: from a name to an engine that works on this host.

use clap::ValueEnum;
use guise_engine::Engine;

use crate::Failure;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineChoice {
    /// The best that works here
    Auto,
    /// The processor's own virtualization
    Kvm,
    /// Guise's own engine: translator and interpreter
    Soft,
    /// Its interpreter alone
    Interp,
}

/// Makes the engine, or says why this host or this version has none.
pub fn choose(choice: EngineChoice) -> Result<Box<dyn Engine>, Failure> {
    Err(Failure::failed(format!("the engine {choice:?} is not in this version")))
}
