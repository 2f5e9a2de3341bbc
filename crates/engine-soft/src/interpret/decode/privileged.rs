//! Chooses handlers for system instructions.

use iced_x86::{Code, Mnemonic, Register};

use super::{Builder, Choice, ends, goes_on};
use crate::cpu::keys;
use crate::fpu;
use crate::interpret::op::Handler;
use crate::interpret::{ports, processor, system, vector};

impl Builder<'_> {
    pub(super) fn privileged(&mut self) -> Option<Choice> {
        use Mnemonic::*;
        match self.mnemonic() {
            In => self.port(0, 1, [ports::input::<u8>, ports::input::<u16>, ports::input::<u32>]),
            Out => {
                self.port(1, 0, [ports::output::<u8>, ports::output::<u16>, ports::output::<u32>])
            }
            Hlt => ends(processor::hlt),
            Cli => goes_on(system::cli),
            Sti => goes_on(system::sti),
            Clac => goes_on(system::clac),
            Stac => goes_on(system::stac),
            Clts => goes_on(system::clts),
            Cpuid => goes_on(processor::cpuid),
            Rdtsc => goes_on(processor::rdtsc),
            Rdtscp => goes_on(processor::rdtscp),
            Rdpid => {
                self.op.a = self.slot(0);
                goes_on(processor::rdpid)
            }
            Rdpmc => goes_on(processor::rdpmc),
            Rdrand | Rdseed => {
                self.op.a = self.slot(0);
                self.keep_instruction();
                goes_on(processor::random)
            }
            Rdmsr => goes_on(processor::rdmsr),
            Wrmsr => ends(processor::wrmsr),
            Mov => self.system_move(),
            Lgdt | Lidt => {
                self.op.small = (self.mnemonic() == Lidt) as u8;
                self.op.immediate = self.table_size();
                goes_on(system::load_table)
            }
            Sgdt | Sidt => {
                self.op.small = (self.mnemonic() == Sidt) as u8;
                self.op.immediate = self.table_size();
                goes_on(system::store_table)
            }
            Lldt => self.selector_in(system::lldt),
            Ltr => self.selector_in(system::ltr),
            Verr => self.selector_in(system::verr),
            Verw => self.selector_in(system::verw),
            Sldt => self.selector_out(system::sldt),
            Str => self.selector_out(system::str),
            Smsw => self.selector_out(system::smsw),
            Lmsw => self.selector_in(system::lmsw).map(|choice| Choice { ends: true, ..choice }),
            Lar => self.look_up(system::lar),
            Lsl => self.look_up(system::lsl),
            Arpl => {
                self.op.b = self.slot(1);
                if self.is_memory(0) {
                    self.op.small = 1;
                } else {
                    self.op.a = self.slot(0);
                }
                goes_on(system::arpl)
            }
            Invlpg => ends(system::invlpg),
            Invpcid => {
                self.op.a = self.slot(0);
                ends(system::invpcid)
            }
            Invd | Wbinvd | Wbnoinvd => goes_on(system::flush_caches),
            Swapgs => goes_on(system::swapgs),
            Syscall => ends(system::syscall),
            Sysret | Sysretq => {
                self.op.small = (self.mnemonic() == Sysretq) as u8;
                ends(system::sysret)
            }
            Sysenter => ends(system::sysenter),
            Sysexit | Sysexitq => {
                self.op.small = (self.mnemonic() == Sysexitq) as u8;
                ends(system::sysexit)
            }
            Rdfsbase => self.base(system::read_base, 0),
            Rdgsbase => self.base(system::read_base, 1),
            Wrfsbase => self.base(system::write_base, 0),
            Wrgsbase => self.base(system::write_base, 1),
            Vmcall | Vmmcall => ends(processor::hypercall),
            Serialize => ends(processor::serialize),
            Rdpkru => goes_on(keys::rdpkru),
            Wrpkru => goes_on(keys::wrpkru),
            Wait => goes_on(vector::wait),
            mnemonic if fpu::execute::handles(mnemonic) => {
                self.keep_instruction();
                if mnemonic == Xsetbv { ends(vector::state) } else { goes_on(vector::state) }
            }
            _ => None,
        }
    }

    /// IN or OUT: which operand is the port, which the data.
    fn port(&mut self, data: u32, port: u32, handlers: [Handler; 3]) -> Option<Choice> {
        if self.is_register(port) {
            self.op.small = 1;
        } else {
            self.op.immediate = self.instruction.immediate8() as u64;
        }
        let handler = match self.size(data) {
            1 => handlers[0],
            2 => handlers[1],
            _ => handlers[2],
        };
        // OUT ends its block: devices may have raised an interrupt.
        if port == 0 { ends(handler) } else { goes_on(handler) }
    }

    fn system_move(&mut self) -> Option<Choice> {
        let (to, from) = (self.register(0), self.register(1));
        if from.is_cr() {
            self.op.small = (from as u32 - Register::CR0 as u32) as u8;
            self.op.a = self.slot(0);
            goes_on(system::read_control)
        } else if to.is_cr() {
            self.op.small = (to as u32 - Register::CR0 as u32) as u8;
            self.op.b = self.slot(1);
            ends(system::write_control)
        } else if from.is_dr() {
            self.op.small = (from as u32 - Register::DR0 as u32) as u8;
            self.op.a = self.slot(0);
            goes_on(system::read_debug)
        } else if to.is_dr() {
            self.op.small = (to as u32 - Register::DR0 as u32) as u8;
            self.op.b = self.slot(1);
            ends(system::write_debug)
        } else {
            None
        }
    }

    /// Operand size of LGDT and its like.
    fn table_size(&self) -> u64 {
        match self.instruction.code() {
            Code::Lgdt_m1632_16 | Code::Lidt_m1632_16 => 2,
            Code::Sgdt_m1632_16 | Code::Sidt_m1632_16 => 2,
            Code::Lgdt_m1632 | Code::Lidt_m1632 | Code::Sgdt_m1632 | Code::Sidt_m1632 => 4,
            _ => 8,
        }
    }

    /// A selector from a register or, where `small` is 1, from memory.
    fn selector_in(&mut self, handler: Handler) -> Option<Choice> {
        if self.is_memory(0) {
            self.op.small = 1;
        } else {
            self.op.a = self.slot(0);
        }
        goes_on(handler)
    }

    /// 16 bits to memory (`small` 1), or to a register of size `immediate`.
    fn selector_out(&mut self, handler: Handler) -> Option<Choice> {
        if self.is_memory(0) {
            self.op.small = 1;
        } else {
            self.op.a = self.slot(0);
            self.op.immediate = self.size(0) as u64;
        }
        goes_on(handler)
    }

    fn look_up(&mut self, handler: Handler) -> Option<Choice> {
        self.op.a = self.slot(0);
        self.op.immediate = self.size(0) as u64;
        if self.is_memory(1) {
            self.op.small = 1;
        } else {
            self.op.b = self.slot(1);
        }
        goes_on(handler)
    }

    fn base(&mut self, handler: Handler, gs: u8) -> Option<Choice> {
        self.op.a = self.slot(0);
        self.op.small = gs;
        self.op.immediate = self.size(0) as u64;
        goes_on(handler)
    }
}
