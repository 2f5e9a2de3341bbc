//! The comparison that decides whether an access may go ahead.

use super::*;

#[test]
fn an_empty_bank_finds_nothing() {
    let bank = Bank::new();
    for page in [0u64, 1, 2, 1023, 1024, 0x000f_ffff_ffff_ffff] {
        for offset in [0, 1, 4095] {
            assert_eq!(bank.find_read((page << 12) + offset, 1), None);
            assert_eq!(bank.find_write((page << 12) + offset, 1), None);
        }
    }
}

#[test]
fn an_access_must_stay_in_its_page() {
    let mut bank = Bank::new();
    let mut page = [0u8; 4096];
    let host = page.as_mut_ptr();
    bank.fill_read(0x7123_4567_8000, host);
    assert_eq!(bank.find_read(0x7123_4567_8000, 8), Some(host));
    assert_eq!(bank.find_read(0x7123_4567_8ff8, 8), Some(host.wrapping_add(0xff8)));
    assert_eq!(bank.find_read(0x7123_4567_8ff9, 8), None);
    assert_eq!(bank.find_read(0x7123_4567_7fff, 8), None);
    assert_eq!(bank.find_read(0x7123_4567_8000 + (1024 << 12), 8), None);
    assert_eq!(bank.find_write(0x7123_4567_8000, 8), None);
}

#[test]
fn forgetting_is_exact() {
    let mut bank = Bank::new();
    let mut page = [0u8; 4096];
    let host = page.as_mut_ptr();
    bank.fill_read(0, host);
    bank.fill_write(0, host);
    bank.forget(1024 << 12);
    assert!(bank.find_read(0, 1).is_some());
    bank.forget_writes_to(host);
    assert!(bank.find_write(0, 1).is_none());
    bank.forget(0xfff);
    assert!(bank.find_read(0, 1).is_none());
}
