use std::cell::Cell;
use std::convert::Infallible;
use std::time::Duration;

use super::{Lookout, MOST_OWED};

const BRIEF: Duration = Duration::from_micros(5);
const LONG: Duration = Duration::from_millis(5);

/// How often it looked, when there was nothing.
fn looks(lookout: &mut Lookout, in_hand: usize) -> u32 {
    let count = Cell::new(0);
    let seen: Result<bool, Infallible> = lookout.sees(in_hand, || {
        count.set(count.get() + 1);
        Ok(false)
    });
    assert_eq!(seen, Ok(false));
    count.get()
}

#[test]
fn it_looks_once_unless_the_driver_was_quick() {
    let mut lookout = Lookout::default();
    assert_eq!(looks(&mut lookout, 0), 1);
    lookout.slept(0, LONG, true);
    assert_eq!(looks(&mut lookout, 0), 1);
    lookout.slept(0, BRIEF, false);
    assert_eq!(looks(&mut lookout, 0), 1);
    lookout.slept(0, BRIEF, true);
    assert!(looks(&mut lookout, 0) > 1);
}

#[test]
fn moments_in_vain_become_rare() {
    let mut lookout = Lookout::default();
    let mut moments = 0;
    for _ in 0..1000 {
        lookout.slept(0, BRIEF, true);
        moments += u32::from(looks(&mut lookout, 0) > 1);
    }
    assert!((5..15).contains(&moments), "{moments}");
}

#[test]
fn what_is_seen_makes_up_for_it() {
    let mut lookout = Lookout::default();
    for _ in 0..2 * MOST_OWED {
        lookout.slept(0, BRIEF, true);
        looks(&mut lookout, 0);
    }
    // The next moment that is not in vain.
    while lookout.owed > 0 {
        lookout.slept(0, BRIEF, true);
    }
    assert_eq!(lookout.sees(0, || Ok::<_, Infallible>(true)), Ok(true));
    assert!(looks(&mut lookout, 0) > 1, "it goes on looking without a sleep");
}

#[test]
fn it_looks_until_it_has_as_many_in_hand_as_before() {
    let mut lookout = Lookout::default();
    lookout.slept(4, LONG, false);
    assert_eq!(looks(&mut lookout, 4), 1, "nothing has been given back");
    lookout.slept(4, LONG, false);
    assert!(looks(&mut lookout, 3) > 1);
    // That was in vain, and is paid for.
    assert_eq!(looks(&mut lookout, 3), 1);
    lookout.slept(4, BRIEF, true);
    assert!(looks(&mut lookout, 3) > 1);
}
