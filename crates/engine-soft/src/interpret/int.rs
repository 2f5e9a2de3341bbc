//! The four integer widths, with the processor's own arithmetic.
//!
//! Results and flags come from the host's instruction of the same name, so nothing of
//! the processor's arithmetic is written down a second time. Flags are taken with
//! SETO and LAHF, which cost less than PUSHF. Guest memory is read and written by
//! instructions of the access's own width: other threads may write it at any time,
//! which Rust's references do not allow for, and x86 programs rely on such an access
//! being one.

use std::arch::asm;

/// CF, PF, AF, ZF, SF and OF.
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
pub const CF: u64 = 1;
pub const PF: u64 = 1 << 2;
pub const AF: u64 = 1 << 4;
pub const ZF: u64 = 1 << 6;
pub const SF: u64 = 1 << 7;
pub const OF: u64 = 1 << 11;

/// Status flags from AX as `seto al; lahf` leaves it.
#[inline(always)]
fn status(ax: u16) -> u64 {
    let ax = ax as u64;
    (ax >> 8) & (STATUS & 0xff) | (ax & 1) << 11
}

/// AX from which `add al, 0x7f; sahf` makes these flags.
#[inline(always)]
fn image(flags: u64) -> u16 {
    (flags << 8 | (flags & OF) >> 11) as u16
}

/// The flags after BSF or BSR of a value. All but ZF are undefined, and processors differ: some
/// leave them alone.
#[inline(always)]
pub fn scan_status(value: u64, forward: bool, flags: u64) -> u64 {
    macro_rules! scanned {
        ($insn:literal) => {{
            let ax: u16;
            // SAFETY: arithmetic on registers.
            unsafe {
                asm!(
                    "add al, 0x7f",
                    "sahf",
                    concat!($insn, " {v}, {v}"),
                    "seto al",
                    "lahf",
                    v = inout(reg) value => _, inout("ax") image(flags) => ax,
                    options(pure, nomem, nostack)
                );
            }
            status(ax)
        }};
    }
    if forward { scanned!("bsf") } else { scanned!("bsr") }
}

/// An operand of 1, 2, 4 or 8 bytes. Functions that give flags give all six of them.
pub trait Int: Copy + Eq + std::fmt::Debug + 'static {
    const SIZE: u64;
    const BITS: u32;
    fn new(value: u64) -> Self;
    /// Zero-extended.
    fn get(self) -> u64;
    /// Sign-extended.
    fn signed(self) -> i64;

    fn add(self, b: Self) -> (Self, u64);
    fn sub(self, b: Self) -> (Self, u64);
    fn and(self, b: Self) -> (Self, u64);
    fn or(self, b: Self) -> (Self, u64);
    fn xor(self, b: Self) -> (Self, u64);
    /// `carry` is the flags register: its bit 0 goes in.
    fn adc(self, b: Self, carry: u64) -> (Self, u64);
    fn sbb(self, b: Self, carry: u64) -> (Self, u64);
    fn shl(self, count: u8) -> (Self, u64);
    fn shr(self, count: u8) -> (Self, u64);
    fn sar(self, count: u8) -> (Self, u64);
    fn rol(self, count: u8) -> (Self, u64);
    fn ror(self, count: u8) -> (Self, u64);
    fn rcl(self, count: u8, carry: u64) -> (Self, u64);
    fn rcr(self, count: u8, carry: u64) -> (Self, u64);
    /// Low half, high half. `flags` is the flags register: processors differ in what they do to
    /// the flags that are undefined after it, and some leave them alone.
    fn mul(self, b: Self, flags: u64) -> (Self, Self, u64);
    fn imul(self, b: Self, flags: u64) -> (Self, Self, u64);

    /// # Safety
    ///
    /// `SIZE` bytes at `at` can be read.
    unsafe fn load(at: *const u8) -> Self;
    /// # Safety
    ///
    /// `SIZE` bytes at `at` can be written.
    unsafe fn store(self, at: *mut u8);
    /// Compares and exchanges with LOCK: none when `new` was stored, else what stands
    /// there.
    ///
    /// # Safety
    ///
    /// `SIZE` bytes at `at` can be written.
    unsafe fn exchange_if(at: *mut u8, old: Self, new: Self) -> Option<Self>;
}

macro_rules! binary {
    ($name:ident, $insn:literal, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(self, b: Self) -> (Self, u64) {
            let mut r = self;
            let ax: u16;
            // SAFETY: arithmetic on registers.
            unsafe {
                asm!(
                    concat!($insn, " {r", $m, "}, {b", $m, "}"),
                    "seto al",
                    "lahf",
                    r = inout($class) r, b = in($class) b, out("ax") ax,
                    options(pure, nomem, nostack)
                );
            }
            (r, status(ax))
        }
    };
}

macro_rules! with_carry {
    ($name:ident, $insn:literal, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(self, b: Self, carry: u64) -> (Self, u64) {
            let mut r = self;
            let ax: u16;
            // SAFETY: arithmetic on registers.
            unsafe {
                asm!(
                    "bt {c:e}, 0",
                    concat!($insn, " {r", $m, "}, {b", $m, "}"),
                    "seto al",
                    "lahf",
                    c = in(reg) carry, r = inout($class) r, b = in($class) b, out("ax") ax,
                    options(pure, nomem, nostack)
                );
            }
            (r, status(ax))
        }
    };
}

macro_rules! shift {
    ($name:ident, $insn:literal, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(self, count: u8) -> (Self, u64) {
            let mut r = self;
            let ax: u16;
            // SAFETY: arithmetic on registers.
            unsafe {
                asm!(
                    concat!($insn, " {r", $m, "}, cl"),
                    "seto al",
                    "lahf",
                    r = inout($class) r, in("cl") count, out("ax") ax,
                    options(pure, nomem, nostack)
                );
            }
            (r, status(ax))
        }
    };
}

macro_rules! rotate_through_carry {
    ($name:ident, $insn:literal, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(self, count: u8, carry: u64) -> (Self, u64) {
            let mut r = self;
            let ax: u16;
            // SAFETY: arithmetic on registers.
            unsafe {
                asm!(
                    "bt {c:e}, 0",
                    concat!($insn, " {r", $m, "}, cl"),
                    "seto al",
                    "lahf",
                    c = in(reg) carry, r = inout($class) r, in("cl") count, out("ax") ax,
                    options(pure, nomem, nostack)
                );
            }
            (r, status(ax))
        }
    };
}

macro_rules! product {
    ($name:ident, $insn:literal, $t:ty, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(self, b: Self, flags: u64) -> (Self, Self, u64) {
            let (low, high): (u64, u64);
            let ax: u16;
            // SAFETY: arithmetic on registers.
            unsafe {
                asm!(
                    "add al, 0x7f",
                    "sahf",
                    "mov rax, {a}",
                    concat!($insn, " {b", $m, "}"),
                    "mov {a}, rax",
                    "seto al",
                    "lahf",
                    a = inout(reg) self as u64 => low, b = in($class) b,
                    inout("ax") image(flags) => ax, out("rdx") high,
                    options(pure, nomem, nostack)
                );
            }
            // Bytes have both halves in AX.
            let high = if Self::SIZE == 1 { low >> 8 } else { high };
            (low as $t, high as $t, status(ax))
        }
    };
}

macro_rules! int {
    ($t:ty, $s:ty, $class:ident, $m:literal, $acc:tt) => {
        impl Int for $t {
            const SIZE: u64 = size_of::<$t>() as u64;
            const BITS: u32 = <$t>::BITS;

            #[inline(always)]
            fn new(value: u64) -> Self {
                value as $t
            }
            #[inline(always)]
            fn get(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn signed(self) -> i64 {
                self as $s as i64
            }

            binary!(add, "add", $class, $m);
            binary!(sub, "sub", $class, $m);
            binary!(and, "and", $class, $m);
            binary!(or, "or", $class, $m);
            binary!(xor, "xor", $class, $m);
            with_carry!(adc, "adc", $class, $m);
            with_carry!(sbb, "sbb", $class, $m);
            shift!(shl, "shl", $class, $m);
            shift!(shr, "shr", $class, $m);
            shift!(sar, "sar", $class, $m);
            shift!(rol, "rol", $class, $m);
            shift!(ror, "ror", $class, $m);
            rotate_through_carry!(rcl, "rcl", $class, $m);
            rotate_through_carry!(rcr, "rcr", $class, $m);

            product!(mul, "mul", $t, $class, $m);
            product!(imul, "imul", $t, $class, $m);

            #[inline(always)]
            unsafe fn load(at: *const u8) -> Self {
                let value: $t;
                // SAFETY: the caller vouches for the bytes.
                unsafe {
                    asm!(
                        concat!("mov {v", $m, "}, [{p}]"),
                        v = out($class) value, p = in(reg) at,
                        options(readonly, nostack, preserves_flags)
                    );
                }
                value
            }

            #[inline(always)]
            unsafe fn store(self, at: *mut u8) {
                // SAFETY: the caller vouches for the bytes.
                unsafe {
                    asm!(
                        concat!("mov [{p}], {v", $m, "}"),
                        v = in($class) self, p = in(reg) at,
                        options(nostack, preserves_flags)
                    );
                }
            }

            #[inline(always)]
            unsafe fn exchange_if(at: *mut u8, old: Self, new: Self) -> Option<Self> {
                let found: $t;
                let equal: u8;
                // SAFETY: the caller vouches for the bytes.
                unsafe {
                    asm!(
                        concat!("lock cmpxchg [{p}], {n", $m, "}"),
                        "sete {e}",
                        p = in(reg) at, n = in($class) new, e = out(reg_byte) equal,
                        inout($acc) old => found,
                        options(nostack)
                    );
                }
                if equal != 0 { None } else { Some(found) }
            }
        }
    };
}

int!(u8, i8, reg_byte, "", "al");
int!(u16, i16, reg, ":x", "ax");
int!(u32, i32, reg, ":e", "eax");
int!(u64, i64, reg, ":r", "rax");

/// The value a condition has, by its encoding (0 O, 1 NO, 2 B, … 15 NLE).
#[inline(always)]
pub fn condition(code: u8, flags: u64) -> bool {
    let sign_differs = (flags >> 7 ^ flags >> 11) & 1 != 0;
    let holds = match code >> 1 {
        0 => flags & OF != 0,
        1 => flags & CF != 0,
        2 => flags & ZF != 0,
        3 => flags & (CF | ZF) != 0,
        4 => flags & SF != 0,
        5 => flags & PF != 0,
        6 => sign_differs,
        _ => sign_differs || flags & ZF != 0,
    };
    holds ^ (code & 1 != 0)
}
