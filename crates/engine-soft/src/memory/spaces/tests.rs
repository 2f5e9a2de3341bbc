use super::*;

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
