//! What executes the guest.

use guise_engine::Engine;
use guise_engine_kvm::{KvmEngine, probe};
use guise_engine_soft::{SoftEngine, Tier};

use super::failed;
use crate::body::BodyError;
use crate::job;

/// The engine that a job asks for, and a word to the user where that is not what he may
/// expect.
pub fn engine(wanted: job::Engine) -> Result<(Box<dyn Engine>, Option<String>), BodyError> {
    let soft = || Box::new(SoftEngine::new(Tier::Translator));
    match wanted {
        job::Engine::Soft => Ok((soft(), None)),
        job::Engine::Kvm => Ok((Box::new(KvmEngine::new().map_err(failed)?), None)),
        job::Engine::Auto => match usable_kvm() {
            Ok(engine) => Ok((Box::new(engine), None)),
            Err(reason) => Ok((soft(), reason)),
        },
    }
}

/// A KVM that runs what kernels consist of. Who has one that does not is told why.
fn usable_kvm() -> Result<KvmEngine, Option<String>> {
    let engine = KvmEngine::new().map_err(|_| None)?;
    let reason = match probe::run(&engine) {
        Ok(verdict) if verdict.usable() => return Ok(engine),
        Ok(verdict) => verdict.reason().unwrap_or_default(),
        Err(error) => error.to_string(),
    };
    let reason = reason.split("; use --engine").next().unwrap_or_default();
    Err(Some(format!("the software engine runs this guest; this host's KVM cannot: {reason}")))
}
