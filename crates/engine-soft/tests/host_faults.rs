//! Guest memory that the host takes away under a running guest, as a full file system or a
//! truncated file does: the signal comes in the middle of generated code. The engine says
//! where the guest was, and the process goes on. In Rust code that generated code calls, the
//! process ends, but it says as much before.

mod port_board;

use std::fs::File;
use std::os::fd::FromRawFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::sync::Arc;

use guise_engine::memory::vm_memory::{Bytes, FileOffset, GuestAddress, MemoryRegionAddress};
use guise_engine::state::SegmentState;
use guise_engine::{CpuModel, Engine as _, EngineError, GuestRegion, MemorySlot, Vm, VmConfig};
use guise_engine_soft::{SoftEngine, Tier};
use port_board::PortBoard;

const MEMORY: usize = 1 << 20;
const TABLES: u64 = 0x1000;
const CODE: u64 = 0x1_0000;
/// From here on there is no file any more.
const GONE: u64 = 0x8_0000;

/// A file in memory, of this length.
fn memory_file(length: usize) -> File {
    // SAFETY: the name is a string; the result is checked, and nobody else has it.
    let file = unsafe {
        let descriptor = libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC);
        assert!(descriptor >= 0, "a file in memory: {}", std::io::Error::last_os_error());
        File::from_raw_fd(descriptor)
    };
    file.set_len(length as u64).expect("it can be sparse");
    file
}

/// Runs `code` in long mode at level 0, with RDI at [`GONE`], and returns how it fails.
fn run(code: &[u8]) -> (u64, String) {
    let file = memory_file(MEMORY);
    let backing = FileOffset::new(file.try_clone().expect("a second handle"), 0);
    let region = GuestRegion::from_range(GuestAddress(0), MEMORY, Some(backing));
    let region = Arc::new(region.expect("it can be mapped"));
    let word = |at: u64, value: u64| {
        region.write_obj(value, MemoryRegionAddress(at)).expect("it is in memory");
    };
    word(TABLES, (TABLES + 0x1000) | 3);
    word(TABLES + 0x1000, (TABLES + 0x2000) | 3);
    word(TABLES + 0x2000, 0x83);
    region.write_slice(code, MemoryRegionAddress(CODE)).expect("it is in memory");
    file.set_len(GONE).expect("it can be shortened");

    let config = VmConfig { vcpus: 1, model: CpuModel::Host, tsc_khz: None };
    let vm: Arc<dyn Vm> = SoftEngine::new(Tier::Translator).create_vm(&config).expect("a VM");
    let slot = MemorySlot {
        guest_address: 0,
        region: region.clone(),
        offset: 0,
        size: MEMORY as u64,
        read_only: false,
    };
    vm.map_memory(0, slot).expect("it is mapped");
    let mut vcpu = vm.create_vcpu(0).expect("a vCPU");
    let mut state = vcpu.state().expect("its state");
    let segment = |access| SegmentState { selector: 8, base: 0, limit: u32::MAX, access };
    let system = &mut state.system;
    system.cs = segment(0xa09b);
    for data in [&mut system.ss, &mut system.ds, &mut system.es] {
        *data = segment(0xc093);
    }
    (system.cr0, system.cr3, system.cr4, system.efer) = (0x8001_0031, TABLES, 0x220, 0x500);
    for (number, value) in &mut state.msrs {
        if *number == 0xc000_0080 {
            *value = 0x500;
        }
    }
    state.registers.rip = CODE;
    state.registers.gpr[7] = GONE;
    vcpu.set_state(&state).expect("it can be loaded");
    let board = PortBoard::default();
    match vcpu.run(&board) {
        Err(EngineError::Stuck { vcpu: 0, rip, reason }) => (rip, reason),
        other => panic!("the guest ended with {other:?}"),
    }
}

/// Set in a process of its own, which is to end with a signal.
const CHILD: &str = "GUISE_TEST_DIES";

// FXSAVE is executed by Rust code, which generated code calls: nop; fxsave [rdi]; hlt.
#[test]
fn a_signal_in_code_that_generated_code_calls_names_rip_mode_and_block() {
    if std::env::var_os(CHILD).is_some() {
        run(&[0x90, 0x0f, 0xae, 0x07, 0xf4]);
        return;
    }
    let name = "a_signal_in_code_that_generated_code_calls_names_rip_mode_and_block";
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .expect("this program runs once more");
    let said = String::from_utf8_lossy(&child.stderr);
    assert_eq!(child.status.signal(), Some(libc::SIGBUS), "{said}");
    let rip = CODE + 1;
    let before = format!("; guest RIP {rip:#x} in supervisor mode, called by the block at 0x");
    let (_, block) = said.split_once(&before).expect(&said);
    let block = block.lines().next().and_then(|digits| u64::from_str_radix(digits, 16).ok());
    assert!(block.is_some_and(|block| (CODE..=rip).contains(&block)), "{said}");
}

#[test]
fn a_signal_in_generated_code_names_rip_mode_and_block() {
    // inc eax; mov [rdi], eax; and the same with a load.
    for (code, offset) in [(&[0xff, 0xc0, 0x89, 0x07, 0xf4][..], 2), (&[0x90, 0x8b, 0x07, 0xf4], 1)]
    {
        let (rip, reason) = run(code);
        assert_eq!(rip, CODE + offset, "{reason}");
        assert!(reason.starts_with("exception 14 in generated code at 0x"), "{reason}");
        let (_, block) =
            reason.split_once("into the supervisor code of the block at 0x").expect(&reason);
        let block = u64::from_str_radix(block, 16).expect(&reason);
        assert!((CODE..=rip).contains(&block), "{reason}");
    }
    // The process is well: another guest of it ends in the same way.
    assert_eq!(run(&[0x90, 0x89, 0x07, 0xf4]).0, CODE + 1);
}
