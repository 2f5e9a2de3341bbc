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

fn in_kvm(page: &[u8], timer_ns: Option<u64>) -> (Page, OneShot, kvm_lapic_state) {
    let (state, timer) = for_kvm(page, timer_ns).expect("it has the right length");
    (Page::of(&state), timer, state)
}

#[test]
fn a_timer_that_counts_goes_on() {
    for mode in [ONE_SHOT, PERIODIC] {
        let (page, timer, state) = in_kvm(&page(mode, 1000, 0), Some(1601));
        assert_eq!((page.get(INITIAL_COUNT), page.get(CURRENT_COUNT)), (1000, 101));
        assert_eq!(neutral(&state, timer).1, Some(1616));
    }
}

#[test]
fn a_timer_that_is_due_fires_in_kvm() {
    let (page, _, _) = in_kvm(&page(ONE_SHOT, 1000, 0), Some(0));
    assert_eq!((page.get(INITIAL_COUNT), page.get(CURRENT_COUNT)), (1000, 0));
}

#[test]
fn a_one_shot_that_has_ended_is_stopped_and_its_count_is_kept() {
    let (page, timer, state) = in_kvm(&page(ONE_SHOT, 1000, 0), None);
    assert_eq!(page.get(INITIAL_COUNT), 0);
    let (page, left) = neutral(&state, timer);
    assert_eq!((Page(page).get(INITIAL_COUNT), left), (1000, None));
}

#[test]
fn a_one_shot_that_ends_after_its_vcpu_stopped_ends_in_the_next_engine() {
    let kvm = |bytes: Vec<u8>| {
        let mut state = kvm_lapic_state { regs: [0; SIZE] };
        state.regs.iter_mut().zip(bytes).for_each(|(to, from)| *to = from as _);
        state
    };
    let (counting, over) = (kvm(page(ONE_SHOT, 1000, 5)), kvm(page(ONE_SHOT, 1000, 0)));
    let mut timer = OneShot::default();
    timer.stopped(&counting);
    assert_eq!(neutral(&counting, timer).1, Some(80));
    assert_eq!(neutral(&over, timer).1, Some(0));

    // Its interrupt is there already.
    let mut requested = Page(page(ONE_SHOT, 1000, 0));
    requested.put(REQUEST + 0x20, 1);
    assert_eq!(neutral(&kvm(requested.0), timer).1, None);

    timer.stopped(&over);
    assert_eq!(neutral(&over, timer).1, None);
    let (_, timer, state) = in_kvm(&page(ONE_SHOT, 1000, 0), Some(0));
    assert_eq!(neutral(&state, timer).1, Some(0));
}

#[test]
fn what_the_guest_writes_meanwhile_counts() {
    let (_, timer, _) = in_kvm(&page(ONE_SHOT, 1000, 0), None);
    let (again, _, state) = in_kvm(&page(ONE_SHOT, 77, 5), Some(80));
    assert_eq!(again.get(INITIAL_COUNT), 77);
    let (page, left) = neutral(&state, timer);
    assert_eq!((Page(page).get(INITIAL_COUNT), left), (77, Some(80)));
}

#[test]
fn deadlines_are_left_to_their_msr() {
    let (page, timer, state) = in_kvm(&page(DEADLINE, 0, 0), None);
    assert_eq!((page.get(LVT_TIMER), timer), (DEADLINE, OneShot::default()));
    assert_eq!(neutral(&state, timer).1, None);
}

#[test]
fn a_page_of_another_length_is_refused() {
    assert!(for_kvm(&[0; 4096], None).is_err());
}
