//! The first processor's registers at a kernel's entry.

use guise_engine::memory::vm_memory::{Bytes as _, GuestAddress};
use guise_engine::state::{SegmentState, TableState};
use guise_engine::{GuestMemory, VcpuState};

use crate::layout::{BOOT_GDT, BOOT_PAGE_TABLES, BOOT_STACK, GIB};

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const RAX: usize = 0;
const RBX: usize = 3;
const RSP: usize = 4;
const RSI: usize = 6;

/// Selectors as Linux's boot protocol wants them.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

/// How a kernel wants to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit mode with the first 4 GiB mapped to themselves: Linux's 64-bit boot
    /// protocol, with its parameters behind RSI.
    Long { rip: u64, rsi: u64 },
    /// Flat 32-bit protected mode without paging: PVH and multiboot.
    Protected { eip: u32, eax: u32, ebx: u32 },
}

impl Entry {
    /// Writes the tables that the entry needs into base RAM.
    pub fn write_tables(&self, memory: &GuestMemory) -> Result<(), EntryError> {
        let long = matches!(self, Entry::Long { .. });
        let code = if long { 0x00af_9b00_0000_ffff } else { 0x00cf_9b00_0000_ffff_u64 };
        // Null, null, code, data, task state (an empty one, below the descriptors).
        let gdt = [0, 0, code, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067];
        write_words(memory, BOOT_GDT, &gdt)?;
        if long { write_page_tables(memory) } else { Ok(()) }
    }

    /// Changes a vCPU's reset state so that it begins here.
    pub fn apply(&self, state: &mut VcpuState) {
        let long = matches!(self, Entry::Long { .. });
        let system = &mut state.system;
        let data = segment(DATA_SELECTOR, 0xc093);
        system.cs = segment(CODE_SELECTOR, if long { 0xa09b } else { 0xc09b });
        (system.ds, system.es, system.ss) = (data, data, data);
        (system.fs, system.gs) = (data, data);
        system.tr = SegmentState { selector: TASK_SELECTOR, base: 0, limit: 0x67, access: 0x008b };
        system.gdtr = TableState { base: BOOT_GDT, limit: 5 * 8 - 1 };
        system.idtr = TableState { base: 0, limit: 0 };
        let registers = &mut state.registers;
        registers.gpr = [0; 16];
        registers.rflags = 2;
        match *self {
            Entry::Long { rip, rsi } => {
                system.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG;
                system.cr3 = BOOT_PAGE_TABLES;
                system.cr4 = CR4_PAE;
                system.efer = EFER_LME | EFER_LMA;
                registers.rip = rip;
                registers.gpr[RSI] = rsi;
                registers.gpr[RSP] = BOOT_STACK;
            }
            Entry::Protected { eip, eax, ebx } => {
                system.cr0 = CR0_PE | CR0_ET | CR0_NE;
                system.cr3 = 0;
                system.cr4 = 0;
                system.efer = 0;
                registers.rip = u64::from(eip);
                registers.gpr[RAX] = u64::from(eax);
                registers.gpr[RBX] = u64::from(ebx);
                registers.gpr[RSP] = BOOT_STACK;
            }
        }
        if let Some(efer) = state.msrs.iter_mut().find(|(number, _)| *number == MSR_EFER) {
            efer.1 = state.system.efer;
        }
    }
}

const MSR_EFER: u32 = 0xc000_0080;

/// Base RAM takes no writes: the machine is not one of ours.
#[derive(Debug, thiserror::Error)]
#[error("boot tables cannot be written at {address:#x}")]
pub struct EntryError {
    address: u64,
}

fn segment(selector: u16, access: u32) -> SegmentState {
    SegmentState { selector, base: 0, limit: 0xffff_ffff, access }
}

/// Maps the first 4 GiB to themselves in pages of 2 MiB.
fn write_page_tables(memory: &GuestMemory) -> Result<(), EntryError> {
    const PRESENT_WRITABLE: u64 = 0x3;
    const LARGE: u64 = 0x80;
    const TABLE: u64 = 0x1000;
    let (root, pointers, directories) =
        (BOOT_PAGE_TABLES, BOOT_PAGE_TABLES + TABLE, BOOT_PAGE_TABLES + 2 * TABLE);
    write_words(memory, root, &[pointers | PRESENT_WRITABLE])?;
    for gigabyte in 0..4 {
        let directory = directories + gigabyte * TABLE;
        write_words(memory, pointers + gigabyte * 8, &[directory | PRESENT_WRITABLE])?;
        let pages: Vec<u64> = (0..512)
            .map(|page| (gigabyte * GIB + (page << 21)) | PRESENT_WRITABLE | LARGE)
            .collect();
        write_words(memory, directory, &pages)?;
    }
    Ok(())
}

fn write_words(memory: &GuestMemory, address: u64, words: &[u64]) -> Result<(), EntryError> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    memory.write_slice(&bytes, GuestAddress(address)).map_err(|_| EntryError { address })
}
