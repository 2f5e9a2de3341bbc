use super::*;

const ONE_SHOT: u32 = 0x40;
const PERIODIC: u32 = 0x40 | 1 << 17;
const DEADLINE: u32 = 0x40 | 2 << 17;
/// Divides by 16.
const BY_16: u32 = 3;

fn page(timer: u32, initial: u32, current: u32) -> Vec<u8> {
    let mut page = Page(vec![0; SIZE]);
    page.put(LVT_TIMER, timer);
    page.put(INITIAL_COUNT, initial);
    page.put(CURRENT_COUNT, current);
    page.put(DIVIDE, BY_16);
    page.0
}

fn in_kvm(page: &[u8], timer_ns: Option<u64>) -> (Page, EndedTimer, kvm_lapic_state) {
    let (state, ended) = for_kvm(page, timer_ns).expect("it has the right length");
    (Page(state.regs.iter().map(|&byte| byte as u8).collect()), ended, state)
}

#[test]
fn a_timer_that_counts_goes_on() {
    for mode in [ONE_SHOT, PERIODIC] {
        let (page, ended, state) = in_kvm(&page(mode, 1000, 0), Some(1601));
        assert_eq!((page.get(INITIAL_COUNT), page.get(CURRENT_COUNT)), (1000, 101));
        assert_eq!(neutral(&state, ended).1, Some(1616));
    }
}

#[test]
fn a_timer_that_is_due_fires_in_kvm() {
    let (page, _, _) = in_kvm(&page(ONE_SHOT, 1000, 0), Some(0));
    assert_eq!((page.get(INITIAL_COUNT), page.get(CURRENT_COUNT)), (1000, 0));
}

#[test]
fn a_one_shot_that_has_ended_is_stopped_and_its_count_is_kept() {
    let (page, ended, state) = in_kvm(&page(ONE_SHOT, 1000, 0), None);
    assert_eq!(page.get(INITIAL_COUNT), 0);
    let (page, left) = neutral(&state, ended);
    assert_eq!((Page(page).get(INITIAL_COUNT), left), (1000, None));
}

#[test]
fn what_the_guest_writes_meanwhile_counts() {
    let (_, ended, _) = in_kvm(&page(ONE_SHOT, 1000, 0), None);
    let (again, _, state) = in_kvm(&page(ONE_SHOT, 77, 5), Some(80));
    assert_eq!(again.get(INITIAL_COUNT), 77);
    let (page, left) = neutral(&state, ended);
    assert_eq!((Page(page).get(INITIAL_COUNT), left), (77, Some(80)));
}

#[test]
fn deadlines_are_left_to_their_msr() {
    let (page, ended, state) = in_kvm(&page(DEADLINE, 0, 0), None);
    assert_eq!((page.get(LVT_TIMER), ended), (DEADLINE, EndedTimer::default()));
    assert_eq!(neutral(&state, ended).1, None);
}

#[test]
fn a_page_of_another_length_is_refused() {
    assert!(for_kvm(&[0; 4096], None).is_err());
}
