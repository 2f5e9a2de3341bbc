use super::*;
use crate::tlb::{CODE_PLACES, code_index};

fn fill(address: u64, global: bool, page_shift: u32) -> Fill {
    Fill { address, host: 0x1000 as *mut u8, write: true, global, page_shift, keys: 0 }
}

fn found(spaces: &mut Spaces, address: u64) -> bool {
    let bank = spaces.bank(View::User);
    // SAFETY: the bank belongs to `spaces`.
    unsafe { (*bank).find_read(address, 1).is_some() && (*bank).find_write(address, 1).is_some() }
}

#[test]
fn an_address_space_keeps_its_entries_while_another_is_current() {
    let mut spaces = Spaces::default();
    spaces.fill(View::User, fill(0x5000, false, 12));
    let generation = spaces.generation();
    spaces.switch(3);
    assert!(!found(&mut spaces, 0x5000));
    assert_ne!(spaces.generation(), generation);
    spaces.switch(0);
    assert!(found(&mut spaces, 0x5000));
    assert_eq!(spaces.generation(), generation);
}

#[test]
fn the_least_recently_used_address_space_makes_room() {
    let mut spaces = Spaces::default();
    spaces.fill(View::User, fill(0x5000, false, 12));
    for pcid in 1..=SPACES as u16 {
        spaces.switch(pcid);
    }
    spaces.switch(0);
    assert!(!found(&mut spaces, 0x5000));
}

#[test]
fn a_flush_keeps_global_pages_if_asked_to() {
    let mut spaces = Spaces::default();
    spaces.fill(View::User, fill(0x5000, false, 12));
    spaces.fill(View::User, fill(0x6000, true, 12));
    spaces.flush_current(true);
    assert!(!found(&mut spaces, 0x5000));
    assert!(found(&mut spaces, 0x6000));
    spaces.flush_current(false);
    assert!(!found(&mut spaces, 0x6000));
}

#[test]
fn a_large_page_goes_as_a_whole() {
    for (shift, inside, outside) in
        [(21, 0x5f_f000, 0x60_0000), (22, 0x5f_f000, 0x80_0000), (30, 0x3fff_f000, 0x4000_0000)]
    {
        let mut spaces = Spaces::default();
        spaces.fill(View::User, fill(0x41_0000, false, shift));
        spaces.fill(View::User, fill(outside, false, 12));
        spaces.forget(inside);
        assert!(!found(&mut spaces, 0x41_0000), "shift {shift}");
        assert!(found(&mut spaces, outside), "shift {shift}");
    }
}

#[test]
fn writes_to_a_host_page_are_forgotten_and_reads_stay() {
    let mut spaces = Spaces::default();
    spaces.fill(View::User, fill(0x5000, false, 12));
    spaces.forget_writes_to(0x1000 as *mut u8);
    let bank = spaces.bank(View::User);
    // SAFETY: the bank belongs to `spaces`.
    unsafe {
        assert!((*bank).find_read(0x5000, 8).is_some());
        assert!((*bank).find_write(0x5000, 8).is_none());
    }
}

fn code(spaces: &mut Spaces, address: u64) -> (u32, u64) {
    let bank = spaces.bank(View::Supervisor);
    // SAFETY: the bank belongs to `spaces`.
    unsafe { ((*bank).code[code_index(address)], (*bank).epoch) }
}

#[test]
fn global_code_is_known_in_every_address_space_until_it_is_forgotten() {
    let mut spaces = Spaces::default();
    let (_, _) = code(&mut spaces, 0);
    spaces.set_code(View::Supervisor, 0x7000, 5, true);
    let (_, epoch) = code(&mut spaces, 0x7000);
    spaces.switch(3);
    assert_eq!(code(&mut spaces, 0x7000), (5, epoch));
    spaces.set_code(View::Supervisor, 0x8000, 6, true);
    spaces.flush_current(true);
    assert_eq!(code(&mut spaces, 0x7000), (5, epoch));
    spaces.switch(0);
    assert_eq!(code(&mut spaces, 0x8000), (6, epoch));
    spaces.forget(0x7123);
    spaces.switch(3);
    let (id, later) = code(&mut spaces, 0x7000);
    assert_eq!(id, 0);
    assert_ne!(later, epoch);
    assert_eq!(code(&mut spaces, 0x8000), (6, later));
    spaces.flush_all(false);
    assert_eq!(code(&mut spaces, 0x8000).0, 0);
}

#[test]
fn code_that_is_not_global_is_known_in_its_address_space_only() {
    let mut spaces = Spaces::default();
    let (_, before) = code(&mut spaces, 0);
    spaces.set_code(View::Supervisor, 0x7000, 5, false);
    let (id, epoch) = code(&mut spaces, 0x7000);
    assert_eq!(id, 5);
    assert_ne!(epoch, before);
    spaces.switch(3);
    let (id, other) = code(&mut spaces, 0x7000);
    assert_eq!(id, 0);
    assert_ne!(other, epoch);
    spaces.switch(0);
    // Another page takes its place, and a flush still ends what was known of it.
    spaces.set_code(View::Supervisor, 0x7000 + (CODE_PLACES as u64) * 4096, 9, true);
    spaces.flush_current(true);
    assert_ne!(code(&mut spaces, 0x7000).1, epoch);
}
