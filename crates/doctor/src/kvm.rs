//! Whether /dev/kvm runs what kernels are made of. Some hypervisors give their guests
//! a /dev/kvm that emulates a part of the instruction set; a kernel fails on it in
//! the middle of its start. So a small guest in long mode executes what they fail
//! on: CMPXCHG16B, XSAVE and XRSTOR, INT3 through an interrupt descriptor table.
//! Then it counts, and the time that takes is the speed.

use std::io;
use std::time::Instant;

use kvm_bindings::{kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use rustix::mm::{MapFlags, ProtFlags};

#[derive(Debug)]
pub enum Probe {
    Usable {
        million_per_second: u64,
    },
    /// It opens, and this is what it cannot do.
    Unusable {
        failed: String,
    },
    Closed(io::Error),
}

/// Runs the guest.
pub fn probe() -> Probe {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return Probe::Closed(error.into()),
    };
    let run = || -> Result<u64, String> {
        let failed = |what: &'static str| move |error| format!("{what}: {error}");
        let memory = Memory::new().map_err(failed("mapping its memory"))?;
        let vm = kvm.create_vm().map_err(|error| failed("making a VM")(io::Error::from(error)))?;
        memory.write(CODE, &code());
        memory.write_tables();
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: memory.address as u64,
        };
        // SAFETY: the region is a mapping of `MEMORY` bytes that belongs to `memory`,
        // which was made before the VM and the vCPU and so is dropped after both.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(|error| failed("giving it memory")(io::Error::from(error)))?;
        let mut vcpu =
            vm.create_vcpu(0).map_err(|error| failed("making a vCPU")(io::Error::from(error)))?;
        set_up(&kvm, &vcpu).map_err(failed("setting up a vCPU"))?;
        execute(&mut vcpu)
    };
    match run() {
        Ok(million_per_second) => Probe::Usable { million_per_second },
        Err(failed) => Probe::Unusable { failed },
    }
}

const MEMORY: usize = 0x10_0000;
const GDT: usize = 0x1000;
const IDT: usize = 0x2000;
const ROOT: usize = 0x3000;
const POINTERS: usize = 0x4000;
const DIRECTORY: usize = 0x5000;
const CODE: usize = 0x6000;
const DATA: usize = 0x8000;
const STACK: usize = 0xa000;
const PROGRESS_PORT: u16 = 0x10;
const ROUNDS: u32 = 2_000_000;

/// What the guest has survived when it reports a step.
const STEPS: [&str; 4] = ["CMPXCHG16B", "XSAVE and XRSTOR", "INT3", "a loop"];

/// The guest's program, and at its end the handler of INT3.
fn code() -> Vec<u8> {
    let mut code = Vec::new();
    let report = |code: &mut Vec<u8>| code.extend([0xe6, PROGRESS_PORT as u8]);
    code.extend([0xbf]); // mov edi, DATA
    code.extend((DATA as u32).to_le_bytes());
    code.extend([0x48, 0x0f, 0xc7, 0x0f]); // cmpxchg16b [rdi]
    report(&mut code);
    code.extend([0x31, 0xc9, 0x0f, 0x01, 0xd0]); // xor ecx, ecx; xgetbv
    code.extend([0xb8, 3, 0, 0, 0, 0x31, 0xd2, 0x0f, 0x01, 0xd1]); // eax = 3; xsetbv
    code.extend([0x48, 0x0f, 0xae, 0x67, 0x40]); // xsave64 [rdi + 64]
    code.extend([0x48, 0x0f, 0xae, 0x6f, 0x40]); // xrstor64 [rdi + 64]
    report(&mut code);
    code.push(0xcc); // int3
    report(&mut code);
    code.push(0xb9); // mov ecx, ROUNDS
    code.extend(ROUNDS.to_le_bytes());
    code.extend([0xff, 0xc9, 0x75, 0xfc]); // dec ecx; jnz
    report(&mut code);
    code.push(0xf4);
    code.resize(HANDLER_OFFSET, 0xf4);
    code.extend([0x48, 0xcf]); // iretq
    code
}

const HANDLER_OFFSET: usize = 0x100;

/// The guest's memory, unmapped when dropped.
struct Memory {
    address: *mut u8,
}

impl Memory {
    fn new() -> io::Result<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new anonymous mapping at an address of the kernel's choice
        // overlaps nothing that exists.
        let address =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), MEMORY, protection, flags) }?;
        Ok(Memory { address: address.cast() })
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= MEMORY);
        // SAFETY: the range was checked to be inside of the mapping, and no vCPU
        // runs while the memory is written.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address.add(at), bytes.len());
        }
    }

    /// Descriptors, one gate, and page tables for the first 2 MiB.
    fn write_tables(&self) {
        let words = |at, words: &[u64]| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            self.write(at, &bytes);
        };
        words(GDT, &[0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
        words(ROOT, &[POINTERS as u64 | 3]);
        words(POINTERS, &[DIRECTORY as u64 | 3]);
        words(DIRECTORY, &[0x83]);
        let handler = (CODE + HANDLER_OFFSET) as u64;
        let gate = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16) << 48;
        words(IDT + 3 * 16, &[gate, 0]);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length, and nothing that
        // borrows from it is left: VM and vCPU have been closed. Should unmapping
        // fail, the mapping stays until the process ends.
        let _ = unsafe { rustix::mm::munmap(self.address.cast(), MEMORY) };
    }
}

fn set_up(kvm: &Kvm, vcpu: &VcpuFd) -> io::Result<()> {
    let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?;
    vcpu.set_cpuid2(&cpuid)?;
    let mut system = vcpu.get_sregs()?;
    let code = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 8,
        type_: 11,
        present: 1,
        dpl: 0,
        db: 0,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { selector: 16, type_: 3, db: 1, l: 0, ..code };
    system.cs = code;
    (system.ds, system.es, system.ss, system.fs, system.gs) = (data, data, data, data, data);
    (system.gdt.base, system.gdt.limit) = (GDT as u64, 23);
    (system.idt.base, system.idt.limit) = (IDT as u64, 0xfff);
    system.cr3 = ROOT as u64;
    // Paging and protection; PAE, FXSAVE, XSAVE; long mode.
    system.cr0 = 0x8000_0033;
    system.cr4 = 0x4_0620;
    system.efer = 0x500;
    vcpu.set_sregs(&system)?;
    let mut registers = vcpu.get_regs()?;
    (registers.rip, registers.rsp, registers.rflags) = (CODE as u64, STACK as u64, 2);
    vcpu.set_regs(&registers)?;
    Ok(())
}

/// Lets the guest take its steps; returns its speed in the last one.
fn execute(vcpu: &mut VcpuFd) -> Result<u64, String> {
    let mut started = Instant::now();
    for step in STEPS {
        started = match step {
            "a loop" => Instant::now(),
            _ => started,
        };
        match vcpu.run() {
            Ok(VcpuExit::IoOut(PROGRESS_PORT, _)) => {}
            Ok(exit) => return Err(format!("{step} ends in {}", name(&exit))),
            Err(error) => return Err(format!("{step}: {error}")),
        }
    }
    let microseconds = started.elapsed().as_micros().max(1) as u64;
    Ok(u64::from(ROUNDS) * 2 / microseconds)
}

fn name(exit: &VcpuExit) -> String {
    match exit {
        VcpuExit::Shutdown => "a triple fault".to_owned(),
        VcpuExit::InternalError => "an internal error of KVM".to_owned(),
        VcpuExit::FailEntry(reason, _) => format!("a refused entry ({reason:#x})"),
        other => format!("{other:?}"),
    }
}
