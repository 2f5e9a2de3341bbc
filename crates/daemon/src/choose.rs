//! Which guise an instance gets where it is not said, and why.

use guise_api::{Explanation, Guise, InstanceSpec, Network};

/// The choice, with a reason on each line.
pub fn choose(spec: &InstanceSpec) -> Explanation {
    let asked = |guise: Guise| Explanation {
        guise,
        reasons: vec![format!("--as {} was asked for", guise.name())],
    };
    match spec.guise {
        Guise::Auto => {}
        guise => return asked(guise),
    }
    let mut reasons =
        vec!["the image is a root file system, which containers and microVMs run".to_owned()];
    if spec.network == Network::Host {
        reasons.push("the host's own network was asked for, which only containers have".to_owned());
    }
    reasons.push(
        "a container starts in milliseconds and shares the host's kernel; \
         --as microvm gives it a kernel of its own"
            .to_owned(),
    );
    Explanation { guise: Guise::Container, reasons }
}
