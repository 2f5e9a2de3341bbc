//! Bare-metal guests: small kernels without an operating system, each of which
//! prints what it saw to the serial port and ends through the debug-exit port, by
//! ACPI, or in a way of its own. What they print is the same on every engine.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::TestkitError;
use crate::error::run;
use crate::initramfs::store;

/// The programs under `guests/baremetal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Modes,
    Pvh,
    Interrupts,
    ApicTimer,
    Ports,
    Paging,
    Smp,
    Kicks,
    Msi,
    CodeChanges,
    Translations,
    Faults,
    Interruptions,
    Litmus,
    Shootdown,
    Virtio,
    Iommu,
    PowerOff,
    Reset,
    KeyboardReset,
    Panic,
    TripleFault,
    Spin,
}

impl Program {
    pub const ALL: [Program; 23] = [
        Program::Modes,
        Program::Pvh,
        Program::Interrupts,
        Program::ApicTimer,
        Program::Ports,
        Program::Paging,
        Program::Smp,
        Program::Kicks,
        Program::Msi,
        Program::CodeChanges,
        Program::Translations,
        Program::Faults,
        Program::Interruptions,
        Program::Litmus,
        Program::Shootdown,
        Program::Virtio,
        Program::Iommu,
        Program::PowerOff,
        Program::Reset,
        Program::KeyboardReset,
        Program::Panic,
        Program::TripleFault,
        Program::Spin,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Program::Modes => "modes",
            Program::Pvh => "pvh",
            Program::Interrupts => "interrupts",
            Program::ApicTimer => "apic_timer",
            Program::Ports => "ports",
            Program::Paging => "paging",
            Program::Smp => "smp",
            Program::Kicks => "kicks",
            Program::Msi => "msi",
            Program::CodeChanges => "code_changes",
            Program::Translations => "translations",
            Program::Faults => "faults",
            Program::Interruptions => "interruptions",
            Program::Litmus => "litmus",
            Program::Shootdown => "shootdown",
            Program::Virtio => "virtio",
            Program::Iommu => "iommu",
            Program::PowerOff => "power_off",
            Program::Reset => "reset",
            Program::KeyboardReset => "keyboard_reset",
            Program::Panic => "panic",
            Program::TripleFault => "triple_fault",
            Program::Spin => "spin",
        }
    }

    /// Whether it has work for other processors.
    fn wants_processors(self) -> bool {
        use Program::*;
        matches!(self, Smp | Kicks | CodeChanges | Litmus | Shootdown)
    }

    /// What it prints, for those that end through the debug-exit port. [`Program::Smp`],
    /// [`Program::Litmus`] and [`Program::Shootdown`] do so on four vCPUs,
    /// [`Program::CodeChanges`] and [`Program::Kicks`] on two; the former and [`Program::Msi`]
    /// want an entropy device, [`Program::Virtio`] wants one of each device, [`Program::Pvh`] the
    /// command line `one two` and less than 3 GiB of memory.
    pub fn expected(self) -> Option<&'static str> {
        match self {
            Program::Modes => Some(include_str!("../guests/baremetal/modes.expected")),
            Program::Pvh => Some(include_str!("../guests/baremetal/pvh.expected")),
            Program::Interrupts => Some(include_str!("../guests/baremetal/interrupts.expected")),
            Program::ApicTimer => Some(include_str!("../guests/baremetal/apic_timer.expected")),
            Program::Ports => Some(include_str!("../guests/baremetal/ports.expected")),
            Program::Paging => Some(include_str!("../guests/baremetal/paging.expected")),
            Program::Smp => Some(include_str!("../guests/baremetal/smp.expected")),
            Program::Kicks => Some(include_str!("../guests/baremetal/kicks.expected")),
            Program::Msi => Some(include_str!("../guests/baremetal/msi.expected")),
            Program::CodeChanges => Some(include_str!("../guests/baremetal/code_changes.expected")),
            Program::Translations => {
                Some(include_str!("../guests/baremetal/translations.expected"))
            }
            Program::Faults => Some(include_str!("../guests/baremetal/faults.expected")),
            Program::Interruptions => {
                Some(include_str!("../guests/baremetal/interruptions.expected"))
            }
            Program::Litmus => Some(include_str!("../guests/baremetal/litmus.expected")),
            Program::Shootdown => Some(include_str!("../guests/baremetal/shootdown.expected")),
            Program::Virtio => Some(include_str!("../guests/baremetal/virtio.expected")),
            Program::Iommu => Some(include_str!("../guests/baremetal/iommu.expected")),
            Program::PowerOff
            | Program::Reset
            | Program::KeyboardReset
            | Program::Panic
            | Program::TripleFault
            | Program::Spin => None,
        }
    }

    /// The kernel, compiled if its sources have changed: ELF, with a multiboot header,
    /// except for [`Program::Pvh`].
    pub fn image(self) -> Result<PathBuf, TestkitError> {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/baremetal");
        let output = scratch_file()?;
        let mut gcc = Command::new("gcc");
        gcc.args(["-std=gnu11", "-O1", "-g0", "-Wall", "-Werror", "-ffreestanding", "-nostdlib"])
            .args(["-static", "-fno-pic", "-no-pie", "-mno-red-zone", "-mgeneral-regs-only"])
            .args(["-fno-stack-protector", "-fno-asynchronous-unwind-tables"])
            .args(["-fcf-protection=none", "-Wl,--build-id=none", "-Wl,-z,max-page-size=4096"])
            .arg("-Wl,--no-warn-rwx-segments");
        if self == Program::Pvh {
            gcc.arg("-DPVH");
        }
        gcc.arg("-T").arg(sources.join("link.ld")).arg("-o").arg(output.path());
        for source in ["start.S", "lib.c", &format!("{}.c", self.name())] {
            gcc.arg(sources.join(source));
        }
        if !self.wants_processors() {
            gcc.arg("-Wl,--defsym=ap_main=start");
        }
        run(&mut gcc)?;
        let bytes =
            std::fs::read(output.path()).map_err(TestkitError::file("reading", output.path()))?;
        store(&format!("baremetal/{}", self.name()), &bytes)
    }
}

/// A file for a compiler's output, which goes away with this value.
pub(crate) struct ScratchFile(PathBuf);

impl ScratchFile {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for ScratchFile {
    fn drop(&mut self) {
        // It is gone already when the compiler failed.
        let _ = std::fs::remove_file(&self.0);
    }
}

pub(crate) fn scratch_file() -> Result<ScratchFile, TestkitError> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let directory = crate::assets::directory().join("build");
    std::fs::create_dir_all(&directory).map_err(TestkitError::file("making", &directory))?;
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    Ok(ScratchFile(directory.join(format!("{}-{number}", std::process::id()))))
}
