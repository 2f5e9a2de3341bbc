//! What the translator sees of a vCPU.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering;

use guise_engine::state::RunState;
use iced_x86::{CpuidFeature, Mnemonic};

use super::{Backend, CodePage, CodeWrite, Mode, Options, Oracle, Translator, VectorLevel};
use crate::cpu::mode::bits::*;
use crate::cpu::{Cpu, Raised};
use crate::memory::access::Spot;
use crate::memory::fetch::Source;
use crate::memory::walk::Access;
use crate::state::CpuState;
use crate::tlb::PAGE_SIZE;
use crate::vm::map::lines;

/// Which pages of host memory hold translated code, and what of them was written.
#[derive(Default)]
pub struct Translated {
    /// A bit for each 64 bytes of a page.
    pages: HashMap<u64, u64>,
    writes: Vec<CodeWrite>,
}

impl Translated {
    /// Bytes of a page were written. The result: the parts that still hold code.
    pub fn written(&mut self, start: usize, end: usize) -> u64 {
        let physical = start as u64 & !(PAGE_SIZE - 1);
        let Some(pages) = self.pages.get_mut(&physical) else { return 0 };
        let granules = lines(start, end - start);
        if *pages & granules != 0 {
            self.writes.push(CodeWrite { physical, granules });
            *pages &= !granules;
        }
        *pages
    }

    /// Nobody watches any page any more.
    pub fn forget_all(&mut self) -> Vec<u64> {
        let pages: Vec<u64> = self.pages.drain().map(|(page, _)| page).collect();
        let all = |&physical: &u64| CodeWrite { physical, granules: u64::MAX };
        self.writes.extend(pages.iter().map(all));
        pages
    }
}

impl Backend for Cpu {
    fn state(&mut self) -> *mut CpuState {
        &raw mut self.state
    }

    fn mode(&mut self) -> Option<Mode> {
        if !self.is_translatable() || self.run != RunState::Running {
            return None;
        }
        let forbidden = self.mode.cpl != 0 && self.state.cr4 & CR4_TSD != 0;
        let offset = self.tsc_offset_from_host().filter(|_| !forbidden);
        let generated = &mut self.state.generated;
        generated.tsc_usable = u32::from(offset.is_some());
        generated.tsc_offset = offset.unwrap_or(0);
        generated.tsc_aux = self.msr.tsc_aux;
        let state = &self.state;
        let features = self.shared.model.features();
        let usable = state.cr0 & (CR0_EM | CR0_TS) == 0 && state.cr4 & CR4_OSFXSR != 0;
        let enabled = if state.cr4 & CR4_OSXSAVE != 0 { state.xcr0 } else { 0 };
        let vectors = if !usable {
            VectorLevel::None
        } else if enabled & 0xe6 == 0xe6 && features.has(CpuidFeature::AVX512F) {
            VectorLevel::Avx512
        } else if enabled & 6 == 6 && features.has(CpuidFeature::AVX) {
            VectorLevel::Avx
        } else {
            VectorLevel::Sse
        };
        Some(Mode { user: self.mode.cpl == 3, vectors })
    }

    fn resolve(&mut self, address: u64, size: u32, write: bool) -> Option<*mut u8> {
        let access = if write { Access::Write } else { Access::Read };
        let view = self.view();
        match self.spots(address, u64::from(size), access, view) {
            Ok((Spot::Memory(host), None)) => Some(host),
            Ok((Spot::Code(host), None)) => {
                let region = self.map.region_of(host)?;
                let marks = region.marks(region.page_of(host));
                let offset = host as usize % PAGE_SIZE as usize;
                (!marks.code_in(offset, size as usize)).then_some(host)
            }
            Ok(_) => None,
            Err(_) => {
                // The interpreter raises it again.
                self.raised = Raised::Nothing;
                None
            }
        }
    }

    fn step(&mut self) -> bool {
        if self.step_cached().is_err() {
            self.deliver_raised();
        }
        self.run == RunState::Running && self.state.attention.load(Ordering::Relaxed) == 0
    }

    fn step_known(&mut self, mnemonic: Mnemonic, length: u64) -> bool {
        let result = match mnemonic {
            Mnemonic::Syscall => self.syscall(self.state.rip.wrapping_add(length)),
            Mnemonic::Sysretq => self.sysret(true),
            _ => return self.step(),
        };
        if result.is_err() {
            self.deliver_raised();
        }
        self.run == RunState::Running && self.state.attention.load(Ordering::Relaxed) == 0
    }

    fn code_page(&mut self, address: u64) -> Option<CodePage> {
        match self.fetch_source(address) {
            Ok(Source::Memory(host)) => {
                let page = host as u64 & !(PAGE_SIZE - 1);
                Some(CodePage { physical: page, host: page as *const [u8; PAGE_SIZE as usize] })
            }
            Ok(Source::Device(_)) => None,
            Err(_) => {
                self.raised = Raised::Nothing;
                None
            }
        }
    }

    fn set_code(&mut self, address: u64, id: u32) {
        if self.checks_alignment() {
            return self.spaces.set_code_in_empty(address, id);
        }
        let global = self.is_fetch_global(address);
        let view = self.view();
        self.spaces.set_code(view, address, id, global);
    }

    fn mark_code(&mut self, physical: u64, granules: u64) {
        *self.translated.pages.entry(physical).or_insert(0) |= granules;
        let mut left = granules;
        while left != 0 {
            let first = left.trailing_zeros();
            let count = (left >> first).trailing_ones();
            let start = physical + u64::from(first) * 64;
            self.watch_code(start as *const u8, count as usize * 64);
            left &= !((u64::MAX >> (64 - count)) << first);
        }
    }

    fn take_code_writes(&mut self, writes: &mut Vec<CodeWrite>) {
        if !self.translated.writes.is_empty() {
            writes.append(&mut self.translated.writes);
        }
    }
}

impl Oracle for Cpu {
    fn start(&mut self) {
        self.start_journal();
    }

    fn rewind(&mut self) {
        if let Some(journal) = &mut self.journal {
            journal.rewind();
        }
    }

    fn end(&mut self) -> Option<String> {
        let (place, first, second) = self.journal.take()?.difference()?;
        let map = self.map.clone();
        let slot = map.slots().iter().find(|slot| slot.region.contains(place));
        let guest = slot.map_or(0, |slot| slot.guest + (place as u64 - slot.host as u64));
        Some(format!(" the byte at physical {guest:#x} {first:#x}, not {second:#x};"))
    }

    fn execute_whole(&mut self) -> bool {
        loop {
            match self.step_cached() {
                Ok(true) => return true,
                Ok(false) => {}
                Err(_) => {
                    self.raised = Raised::Nothing;
                    return false;
                }
            }
        }
    }

    fn device_accesses(&self) -> u64 {
        self.counters.device_accesses
    }
}

/// Host code of one vCPU before everything is translated anew.
const CODE_SIZE: usize = 48 << 20;

impl Cpu {
    /// Whether the translator can run what comes next.
    pub fn is_translatable(&mut self) -> bool {
        self.mode.is_64() && !self.wants_single_steps() && !self.checks_alignment()
    }

    pub fn new_translator(&self, lockstep: bool) -> io::Result<Translator> {
        let features = *self.shared.model.features();
        let vectors = if features.has(CpuidFeature::AVX512F) {
            VectorLevel::Avx512
        } else if features.has(CpuidFeature::AVX) {
            VectorLevel::Avx
        } else {
            VectorLevel::Sse
        };
        let code_size = CODE_SIZE;
        Translator::new::<Cpu>(Options { code_size, vectors, features, exact: false, lockstep })
    }
}
