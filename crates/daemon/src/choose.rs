//! Which guise an instance gets where it is not said, and why.

use guise_api::{ApiError, Code, Explanation, Guise, InstanceSpec, Network};
use guise_image::Image;

/// What an image is to those who run it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// It is not here yet.
    Unknown,
    RootFs,
    /// A root file system whose program is WebAssembly.
    WasmInRootFs,
    /// A WebAssembly program and nothing else.
    Wasm,
    /// A disk that boots by itself.
    Disk,
}

impl Content {
    pub fn of(image: &Image) -> Content {
        match (image.module().is_some(), image.is_wasm()) {
            (true, _) => Content::Wasm,
            (false, true) => Content::WasmInRootFs,
            (false, false) => Content::RootFs,
        }
    }

    /// Whether it may boot by itself; its worker will find out.
    fn may_be_system(self) -> bool {
        self != Content::Wasm
    }
}

/// The choice, with a reason on each line.
pub fn choose(spec: &InstanceSpec, content: Content) -> Explanation {
    let asked = |guise: Guise| Explanation {
        guise,
        reasons: vec![format!("--as {} was asked for", guise.name())],
    };
    match spec.guise {
        Guise::Auto => {}
        Guise::Vm if content.may_be_system() => {
            let what = match content {
                Content::Disk => {
                    "a disk is asked for, and boots by itself: the newest kernel on it, with the \
                     system that is installed there"
                }
                _ => {
                    "--as vm was asked for: the image boots by itself, with its own kernel, which \
                     it has to have with its modules and an init"
                }
            };
            let reasons = [
                what,
                "its worker reads it in its jail; what the guest writes goes to a file of the \
                 instance, and the image stays as it is",
                "it is as shut in as a microVM, and takes as long as its system to start",
            ];
            let reasons = reasons.into_iter().map(str::to_owned).collect();
            return Explanation { guise: Guise::Vm, reasons };
        }
        guise => return asked(guise),
    }
    let wasm = match (content, &spec.entrypoint) {
        (Content::Wasm, _) => true,
        // What is named instead of the image's program says by its name what it is.
        (_, Some(program)) => program.first().is_some_and(|name| name.ends_with(".wasm")),
        (content, None) => content == Content::WasmInRootFs,
    };
    if wasm {
        let reasons = vec![
            "the program is WebAssembly, which needs no kernel: it starts in milliseconds in a \
             sandbox, in a process that is shut in"
                .to_owned(),
        ];
        return Explanation { guise: Guise::Wasm, reasons };
    }
    let mut reasons = vec![match content {
        Content::Unknown => "the image is not here yet, and taken for a root file system",
        _ => "the image is a root file system, which containers and microVMs run",
    }];
    if spec.network == Network::Host {
        reasons.push("the host's own network was asked for, which only containers have");
    }
    reasons.push(
        "a container starts in milliseconds and shares the host's kernel; \
         --as microvm gives it a kernel of its own",
    );
    let reasons = reasons.into_iter().map(str::to_owned).collect();
    Explanation { guise: Guise::Container, reasons }
}

fn unsupported(what: &str, hint: &str) -> ApiError {
    ApiError::new(Code::Unsupported, what).hint(hint).exit_code(125)
}

/// What is said of a VM of an image of which it is known, before it is fetched, that it does not
/// boot by itself.
pub fn no_system(image: &str) -> ApiError {
    unsupported(
        &format!("image {image} as Debian has it lacks a kernel and an init, which a VM boots"),
        &format!(
            "guise image pull {image} --include linux-image-cloud-amd64,systemd-sysv fetches one \
             that has them; --as microvm gives it a kernel"
        ),
    )
}

/// Refuses an image that the guise cannot run.
pub fn check(guise: Guise, content: Content) -> Result<(), ApiError> {
    let refuse = |what: &str, hint: &str| Err(unsupported(what, hint));
    match guise {
        Guise::Wasm if !guise_worker::HAS_WASM => {
            refuse("this build of guise runs no WebAssembly", "build it with its feature wasm")
        }
        Guise::Vm if !content.may_be_system() => refuse(
            "the image is a WebAssembly program, and nothing that boots",
            "run it with --as wasm",
        ),
        Guise::Container | Guise::Microvm if content == Content::Wasm => refuse(
            "the image is a WebAssembly program, and no root file system",
            "run it with --as wasm",
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
