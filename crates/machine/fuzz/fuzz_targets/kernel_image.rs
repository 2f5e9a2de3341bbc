//! Kernel files of any content: the loaders end in an entry or an error.
#![no_main]

use std::io::Write as _;
use std::sync::LazyLock;

use guise_machine::boot::{BootSource, Target, load};
use guise_machine::{Ram, layout};
use libfuzzer_sys::fuzz_target;

static RAM: LazyLock<Ram> = LazyLock::new(|| Ram::new(32 * layout::MIB, 0).expect("32 MiB"));

fuzz_target!(|image: &[u8]| {
    let path = std::env::temp_dir().join(format!("guise-fuzz-{}", std::process::id()));
    let mut file = std::fs::File::create(&path).expect("a temporary file");
    file.write_all(image).expect("room for it");
    let source = BootSource {
        kernel: path,
        initrd: None,
        command_line: "console=ttyS0".to_owned(),
    };
    let target =
        Target { memory: &RAM.memory, ram: RAM.layout, rsdp: layout::ACPI_TABLES };
    let _ = load(&target, &source);
});
