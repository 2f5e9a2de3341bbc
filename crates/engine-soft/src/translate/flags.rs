//! Where the guest's arithmetic flags are while a region is being translated.
//!
//! They are in the host's flags, where guest instructions put them, until a check
//! needs those. If they matter then, they are first put aside into the frame, and
//! come back before an instruction that wants them. Behind that stands the liveness
//! that `scan` has computed: in compiled code flags almost never matter at a check.

use super::emit::{Emit, RAX};
use super::frame::{self, S1};

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
            emit.bytes(&[0x0f, 0x90, 0xc0]); // seto al
            emit.bytes(&[0x66]);
            emit.op_mem(false, &[0x89], RAX, frame::flags());
            emit.mov(RAX, S1);
            self.saved = true;
        }
        self.native = false;
    }

    /// Before an instruction that wants them in the host's flags. Takes S1.
    pub fn bring_back(&mut self, emit: &mut Emit) {
        if !self.native && self.saved {
            emit.mov(S1, RAX);
            emit.op_mem(false, &[0x0f, 0xb7], RAX, frame::flags());
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
