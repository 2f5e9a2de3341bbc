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
        job::Engine::Auto => match probe::usable_engine() {
            Ok(engine) => Ok((Box::new(engine), None)),
            Err(reason) => Ok((soft(), reason)),
        },
    }
}
