//! Arithmetic in decimal digits comes out right, whichever digits.

use iced_x86::{Decoder, DecoderOptions};

use super::*;

fn run(bytes: &[u8], ax: u16, flags: u64) -> (Result<(), Exception>, u16, u64) {
    // SAFETY: zeros are values for all fields; the one pointer is not followed.
    let mut state: Box<CpuState> = unsafe { Box::new_zeroed().assume_init() };
    state.gpr[RAX] = 0xabcd_0000 | u64::from(ax);
    state.rflags = flags;
    let instruction = Decoder::new(32, bytes, DecoderOptions::NONE).decode();
    let result = execute(&instruction, &mut state);
    assert_eq!(state.gpr[RAX] >> 16, 0xabcd);
    (result, state.gpr[RAX] as u16, state.rflags)
}

fn bcd(number: u32) -> u8 {
    (number / 10 % 10 * 16 + number % 10) as u8
}

#[test]
fn packed_digits_add_and_subtract() {
    for a in 0..100u32 {
        for b in 0..100u32 {
            let (x, y) = (bcd(a), bcd(b));
            let auxiliary = if (x & 15) + (y & 15) > 15 { AF } else { 0 };
            let (sum, carry) = x.overflowing_add(y);
            let flags = auxiliary | u64::from(carry);
            let (_, ax, flags) = run(&[0x27], sum.into(), flags);
            assert_eq!((ax as u8, flags & CF != 0), (bcd(a + b), a + b > 99), "{a} + {b}");

            let auxiliary = if x & 15 < y & 15 { AF } else { 0 };
            let (difference, borrow) = x.overflowing_sub(y);
            let flags = auxiliary | u64::from(borrow);
            let (_, ax, flags) = run(&[0x2f], difference.into(), flags);
            assert_eq!((ax as u8, flags & CF != 0), (bcd(100 + a - b), a < b), "{a} - {b}");
        }
    }
}

#[test]
fn unpacked_digits_add_multiply_and_divide() {
    for a in 0..10u16 {
        for b in 0..10u16 {
            let (_, ax, _) = run(&[0x37], a + b, if a + b > 15 { AF } else { 0 });
            assert_eq!(ax, (a + b) / 10 * 256 + (a + b) % 10);
            let (_, ax, _) = run(&[0xd4, 10], a * b, 0);
            assert_eq!(ax, a * b / 10 * 256 + a * b % 10);
            let (_, ax, flags) = run(&[0xd5, 10], a * 256 + b, 0);
            assert_eq!(ax, a * 10 + b);
            assert_eq!(flags & ZF != 0, ax == 0);
        }
    }
    let (result, ax, _) = run(&[0xd4, 0], 77, 0);
    assert_eq!((result, ax), (Err(Exception::plain(DIVIDE_ERROR)), 77));
}

#[test]
fn salc_spreads_the_carry() {
    assert_eq!(run(&[0xd6], 0x1234, CF).1, 0x12ff);
    assert_eq!(run(&[0xd6], 0x1234, 0).1, 0x1200);
}
