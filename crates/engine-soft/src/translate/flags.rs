//! Where the guest's arithmetic flags are while a region is being translated.
//!
//! They are in the host's flags, where guest instructions put them, until a check
//! needs those. If they matter then, they are first put aside into the frame, and
//! come back before an instruction that wants them. Behind that stands the liveness
//! that `scan` has computed: in compiled code flags almost never matter at a check.
//!
//! Between regions they are in the frame. A piece of code that is only reached from there
//! leaves them until something wants them: many a function passes on what it has found.

use super::emit::{Emit, RAX, Reg};
use super::frame::{self, S1};

/// The number of AH in instructions without a REX prefix.
const AH: Reg = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags {
    /// The host's flags are the guest's.
    pub native: bool,
    /// The frame holds the guest's flags.
    pub saved: bool,
}

impl Flags {
    pub const NATIVE: Flags = Flags { native: true, saved: false };
    pub const SAVED: Flags = Flags { native: false, saved: true };

    /// Before host flags are disturbed; `live` says whether the guest's matter.
    /// Takes S1.
    pub fn put_aside(&mut self, emit: &mut Emit, live: bool) {
        if live && !self.saved && self.native {
            emit.mov(S1, RAX);
            emit.bytes(&[0x9f]); // lahf
            // Each byte by itself: the processor would have to join AL and AH.
            emit.op_mem(false, &[0x88], AH, frame::flags_high());
            emit.mov(RAX, S1);
            emit.op_mem(false, &[0x0f, 0x90], 0, frame::flags()); // seto
            self.saved = true;
        }
        self.native = false;
    }

    /// Before an instruction that wants them in the host's flags. Takes S1.
    pub fn bring_back(&mut self, emit: &mut Emit) {
        if !self.native && self.saved {
            emit.mov(S1, RAX);
            emit.op_mem(false, &[0x8a], RAX, frame::flags());
            emit.op_mem(false, &[0x8a], AH, frame::flags_high());
            emit.bytes(&[0x04, 0x7f]); // add al, 0x7f: OF from bit 0
            emit.bytes(&[0x9e]); // sahf
            emit.mov(RAX, S1);
            self.native = true;
        }
    }

    /// After an instruction that has written some.
    pub fn written(&mut self) {
        *self = Flags::NATIVE;
    }
}
