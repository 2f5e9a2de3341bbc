//! Fetches and builds everything that tests boot, so that they run offline, or with
//! `first-boot` or `first-run` only what a first look needs.

use std::process::ExitCode;

use guise_testkit::assets::Kernel;
use guise_testkit::{
    TestkitError, assets, baremetal, debian_root, initramfs, programs, system_image,
};

fn main() -> ExitCode {
    match prepare() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("assets: {error}");
            ExitCode::FAILURE
        }
    }
}

fn prepare() -> Result<(), TestkitError> {
    match std::env::args().nth(1).as_deref() {
        Some("first-boot") => {
            Kernel::Debian12Cloud.image()?;
            return initramfs::shell().map(drop);
        }
        Some("first-run") => return programs::hello().map(drop),
        _ => {}
    }
    for kernel in Kernel::ALL {
        let image = kernel.image()?;
        println!("{:<16} {}", kernel.name(), image.display());
    }
    std::thread::scope(|scope| {
        // It waits for the network and for programs, most of the time.
        let cloud_init = scope.spawn(|| system_image::with_cloud_init(Kernel::Debian12Cloud));
        others()?;
        let archive = cloud_init.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        println!("{:<16} {}", "cloud-init", archive.display());
        Ok(())
    })
}

fn others() -> Result<(), TestkitError> {
    println!("{:<16} {}", "busybox", assets::busybox()?.display());
    println!("{:<16} {}", "shell", initramfs::shell()?.display());
    println!("{:<16} {}", "torture", initramfs::with_torture()?.display());
    for kernel in [Kernel::Debian12Cloud, Kernel::Debian13Cloud] {
        println!("{:<16} {}", "virtio", initramfs::with_virtio(kernel)?.display());
    }
    println!("{:<16} {}", "disk", debian_root::image()?.display());
    println!("{:<16} {}", "its RAM disk", debian_root::ram_disk(Kernel::Debian12Cloud)?.display());
    println!("{:<16} {}", "iperf3", initramfs::with_iperf3(Kernel::Debian12Cloud)?.display());
    println!("{:<16} {}", "WebAssembly", programs::hello()?.display());
    for program in baremetal::Program::ALL {
        println!("{:<16} {}", program.name(), program.image()?.display());
    }
    Ok(())
}
