use super::*;

const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 2 << 17;

#[test]
fn the_divider_has_eight_values() {
    let tick = |divide| Timer { divide, ..Timer::default() }.tick();
    let codes = [0, 1, 2, 3, 8, 9, 10, 11];
    assert_eq!(codes.map(tick), [2, 4, 8, 16, 32, 64, 128, 1]);
}

#[test]
fn a_one_shot_count_runs_down_once() {
    let mut timer = Timer::default();
    timer.set_divide(0b1011, 0);
    timer.set_initial(100, 1000);
    assert_eq!((timer.current(1000), timer.current(1040), timer.current(2000)), (100, 60, 0));
    assert!(!timer.expire(1099));
    assert!(timer.expire(1100));
    assert!(!timer.expire(5000));
    assert_eq!(timer.initial, 100);
    assert_eq!(timer.current(1200), 0);
}

#[test]
fn a_periodic_count_starts_again_and_missed_turns_are_one() {
    let mut timer = Timer::default();
    timer.set_mode(PERIODIC, 0);
    timer.set_divide(0b1011, 0);
    timer.set_initial(100, 0);
    assert_eq!(timer.current(150), 50);
    assert!(timer.expire(1050));
    assert_eq!(timer.deadline, Some(1100));
    assert!(!timer.expire(1099));
}

#[test]
fn the_count_survives_a_change_between_one_shot_and_periodic() {
    let mut timer = Timer::default();
    timer.set_divide(0b1011, 0);
    timer.set_initial(1000, 0);
    timer.set_mode(PERIODIC, 400);
    assert_eq!(timer.current(400), 600);
    assert!(timer.expire(1000));
    timer.set_mode(0, 1300);
    assert_eq!(timer.current(1300), 700);
    assert!(timer.expire(2000));
    timer.set_mode(PERIODIC, 2100);
    assert_eq!(timer.current(2200), 0, "an ended count does not start again");
}

#[test]
fn a_new_divider_keeps_the_count() {
    let mut timer = Timer::default();
    timer.set_divide(0b1011, 0);
    timer.set_initial(1000, 0);
    timer.set_divide(0, 500);
    assert_eq!(timer.current(500), 500);
    assert_eq!(timer.deadline, Some(1500));
}

#[test]
fn tsc_deadlines_fire_once_and_only_in_their_mode() {
    let mut timer = Timer::default();
    timer.set_tsc_deadline(77, 10);
    assert_eq!(timer, Timer::default());
    timer.set_mode(DEADLINE, 0);
    timer.set_initial(5, 0);
    assert_eq!(timer.deadline, None);
    timer.set_tsc_deadline(77, 10);
    assert_eq!((timer.tsc, timer.current(5)), (77, 0));
    assert!(timer.expire(10));
    assert_eq!((timer.tsc, timer.deadline), (0, None));
    timer.set_tsc_deadline(99, 20);
    timer.set_tsc_deadline(0, 0);
    assert_eq!(timer.deadline, None);
    timer.set_tsc_deadline(99, 20);
    timer.set_mode(0, 0);
    assert_eq!((timer.tsc, timer.deadline), (0, None));
}

#[test]
fn extreme_times_are_harmless() {
    let mut timer = Timer::default();
    timer.set_mode(PERIODIC, 0);
    timer.set_divide(0b1010, u64::MAX - 1);
    timer.set_initial(u32::MAX, u64::MAX - 1);
    timer.set_initial(1, 0);
    assert!(timer.expire(u64::MAX));
    timer.current(0);
}
