use super::driver::{BUFFERS, Driver};
use super::*;

/// Runs a test on both ring formats, with and without event indices.
fn on_all(test: impl Fn(Driver)) {
    for (packed, event_index) in [(false, false), (false, true), (true, false), (true, true)] {
        println!("packed {packed}, event index {event_index}");
        test(Driver::new(8, packed, event_index));
    }
}

#[test]
fn chains_go_there_and_back() {
    on_all(|mut driver| {
        let mut queue = driver.queue();
        assert_eq!(queue.pop(), Ok(None));
        for round in 0..50_u32 {
            driver.put(BUFFERS, b"hello ");
            driver.put(BUFFERS + 0x1000, b"device");
            let buffers = [
                (BUFFERS, 6, false),
                (BUFFERS + 0x1000, 6, false),
                (BUFFERS + 0x2000, 3, true),
                (BUFFERS + 0x3000, 100, true),
            ];
            let id = driver.add(&buffers[..2 + round as usize % 3]);
            let chain = queue.pop().unwrap().unwrap();
            let mut reader = chain.reader(&driver.memory);
            assert_eq!(reader.remaining(), 12);
            assert_eq!(&reader.read_array::<12>().unwrap(), b"hello device");
            assert!(reader.read_array::<1>().is_err());
            let mut writer = chain.writer(&driver.memory);
            let room = [0, 3, 103][round as usize % 3];
            assert_eq!(writer.remaining(), room);
            let written = writer.write(b"answer").unwrap();
            assert_eq!(written as u64, room.min(6));
            queue.push(chain, written as u32).unwrap();
            assert_eq!(driver.used(), Some((id, written as u32)));
            assert_eq!(driver.used(), None);
            assert_eq!(queue.pop(), Ok(None));
        }
        assert_eq!(&driver.get::<3>(BUFFERS + 0x2000), b"ans");
        assert_eq!(&driver.get::<3>(BUFFERS + 0x3000), b"wer");
    });
}

#[test]
fn many_chains_are_out_at_once_and_come_back_in_any_order() {
    on_all(|mut driver| {
        let mut queue = driver.queue();
        for _ in 0..10 {
            let ids: Vec<_> = (0..4)
                .map(|n| driver.add(&[(BUFFERS + n, 1, false), (BUFFERS, 1, true)]))
                .collect();
            let mut chains: Vec<_> = (0..4).map(|_| queue.pop().unwrap().unwrap()).collect();
            assert_eq!(queue.pop(), Ok(None));
            chains.reverse();
            for chain in chains {
                queue.push(chain, 1).unwrap();
            }
            let back: Vec<_> = (0..4).map(|_| driver.used().unwrap().0).collect();
            assert!(back.iter().eq(ids.iter().rev()));
        }
    });
}

#[test]
fn interrupts_are_sent_as_the_driver_wants() {
    on_all(|mut driver| {
        let mut queue = driver.queue();
        let mut one = |driver: &mut Driver| {
            driver.add(&[(BUFFERS, 1, true)]);
            let chain = queue.pop().unwrap().unwrap();
            queue.push(chain, 1).unwrap();
            queue.needs_interrupt().unwrap()
        };
        if driver.config.event_index {
            driver.want_interrupt_at(1, true);
            assert!(!one(&mut driver));
            assert!(one(&mut driver));
            assert!(!one(&mut driver));
            driver.want_interrupt_at(1, false);
            if driver.config.packed {
                // Places 3 to 7 of this round, 0 and 1 of the next.
                let wanted: Vec<_> = (0..7).map(|_| one(&mut driver)).collect();
                assert_eq!(wanted, [false, false, false, false, false, false, true]);
            }
        } else {
            driver.want_interrupts(false);
            assert!(!one(&mut driver));
            driver.want_interrupts(true);
            assert!(one(&mut driver));
        }
        assert!(!queue.needs_interrupt().unwrap(), "nothing new");
    });
}

#[test]
fn notifications_are_asked_for_without_a_gap() {
    on_all(|mut driver| {
        let mut queue = driver.queue();
        queue.disable_notification().unwrap();
        assert!(!queue.enable_notification().unwrap());
        driver.add(&[(BUFFERS, 1, true)]);
        assert!(queue.enable_notification().unwrap());
        queue.pop().unwrap().unwrap();
        assert!(!queue.enable_notification().unwrap());
        let wish = u16::from_le_bytes(driver.get(driver.config.device));
        match (driver.config.packed, driver.config.event_index) {
            (true, true) => assert_eq!(wish, 0x8001),
            (false, true) => {
                let at = driver.config.device + 4 + 64;
                assert_eq!(u16::from_le_bytes(driver.get(at)), 1);
            }
            _ => assert_eq!(wish, 0),
        }
    });
}

#[test]
fn a_queue_goes_on_from_its_position() {
    on_all(|mut driver| {
        let mut queue = driver.queue();
        for _ in 0..11 {
            driver.add(&[(BUFFERS, 1, true)]);
            let chain = queue.pop().unwrap().unwrap();
            queue.push(chain, 1).unwrap();
            driver.used().unwrap();
        }
        let saved = serde_json::to_string(&queue.position()).unwrap();
        let position = serde_json::from_str(&saved).unwrap();
        let mut again = Queue::new(driver.memory.clone(), driver.config, position).unwrap();
        let id = driver.add(&[(BUFFERS, 7, true)]);
        let chain = again.pop().unwrap().unwrap();
        again.push(chain, 7).unwrap();
        assert_eq!(driver.used(), Some((id, 7)));
    });
}

#[test]
fn indirect_tables() {
    for packed in [false, true] {
        let mut driver = Driver::new(8, packed, false);
        let mut queue = driver.queue();
        let table = BUFFERS + 0x8000;
        driver.put(BUFFERS, b"ab");
        if packed {
            driver.raw_at(table, BUFFERS, 1, [0, 0]);
            driver.raw_at(table + 16, BUFFERS + 1, 1, [0, 0]);
            driver.raw_at(table + 32, BUFFERS + 2, 1, [0, 2]);
            driver.raw(0, table, 48, [5, 4 | 1 << 7]);
        } else {
            // Out of order, to see that links are followed.
            driver.raw_at(table, BUFFERS, 1, [1, 2]);
            driver.raw_at(table + 32, BUFFERS + 1, 1, [1, 1]);
            driver.raw_at(table + 16, BUFFERS + 2, 1, [2, 0]);
            driver.raw(5, table, 48, [4, 0]);
            driver.offer(5);
        }
        let chain = queue.pop().unwrap().unwrap();
        assert_eq!(&chain.reader(&driver.memory).read_array::<2>().unwrap(), b"ab");
        assert_eq!(chain.writer(&driver.memory).remaining(), 1);
        queue.push(chain, 1).unwrap();
    }
}

#[test]
fn rings_must_be_in_memory_and_aligned() {
    let driver = Driver::new(8, false, false);
    let check = |config| Queue::new(driver.memory.clone(), config, Position::default()).err();
    let good = driver.config;
    assert_eq!(check(good), None);
    for size in [0, 3, 2048] {
        assert_eq!(check(QueueConfig { size, ..good }), Some(QueueError::Size(size)));
    }
    for descriptors in [8, 0xffff_fff0, u64::MAX - 15] {
        assert!(check(QueueConfig { descriptors, ..good }).is_some());
    }
    assert!(check(QueueConfig { driver: 1, ..good }).is_some());
    assert!(check(QueueConfig { device: 2, ..good }).is_some());
    assert_eq!(check(QueueConfig { size: 3, packed: true, ..good }), None);
}

#[test]
fn a_driver_that_breaks_the_rules_is_told_so() {
    let pop = |prepare: &dyn Fn(&mut Driver)| {
        let mut driver = Driver::new(8, false, false);
        prepare(&mut driver);
        driver.queue().pop().unwrap_err()
    };
    let looped = pop(&|driver| {
        driver.raw(0, BUFFERS, 1, [1, 1]);
        driver.raw(1, BUFFERS, 1, [1, 0]);
        driver.offer(0);
    });
    assert_eq!(looped, QueueError::ChainLength);
    assert_eq!(pop(&|driver| driver.offer(8)), QueueError::DescriptorIndex(8));
    let linked = pop(&|driver| {
        driver.raw(0, BUFFERS, 1, [1, 99]);
        driver.offer(0);
    });
    assert_eq!(linked, QueueError::DescriptorIndex(99));
    let outside = pop(&|driver| {
        driver.raw(0, u64::MAX - 3, 8, [0, 0]);
        driver.offer(0);
    });
    assert_eq!(outside, QueueError::Buffer { address: u64::MAX - 3, length: 8 });
    let disordered = pop(&|driver| {
        driver.raw(0, BUFFERS, 1, [3, 1]);
        driver.raw(1, BUFFERS, 1, [0, 0]);
        driver.offer(0);
    });
    assert_eq!(disordered, QueueError::Order);
    let greedy = pop(&|driver| driver.put(driver.config.driver + 2, &9_u16.to_le_bytes()));
    assert_eq!(greedy, QueueError::TooManyAvailable(9));
    for (length, flags) in [(0, 4), (17, 4), (16 << 11, 4), (16, 5)] {
        let bad = pop(&|driver| {
            driver.raw(0, BUFFERS, length, [flags, 0]);
            driver.offer(0);
        });
        assert!(matches!(bad, QueueError::Indirect(_) | QueueError::ChainLength), "{bad}");
    }
    let nested = pop(&|driver| {
        driver.raw_at(BUFFERS, BUFFERS, 16, [4, 0]);
        driver.raw(0, BUFFERS, 16, [4, 0]);
        driver.offer(0);
    });
    assert!(matches!(nested, QueueError::Indirect(_)));
}

#[test]
fn random_rings_end_in_errors_not_in_panics() {
    let mut seed = 0x1234_5678_9abc_def1_u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for packed in [false, true] {
        for _ in 0..300 {
            let driver = Driver::new(8, packed, next() & 1 != 0);
            let mut queue = driver.queue();
            for _ in 0..100 {
                let area = [driver.config.descriptors, driver.config.driver, BUFFERS];
                let at = area[(next() % 3) as usize] + ((next() % 128) & !1);
                // Small values point at something now and then.
                let value = if next() & 1 == 0 { next() % 16 } else { next() & 0x10_80ff };
                driver.put(at, &value.to_le_bytes());
                if let Ok(Some(chain)) = queue.pop() {
                    let mut data = [0; 64];
                    _ = chain.reader(&driver.memory).read(&mut data);
                    _ = chain.writer(&driver.memory).write(&data);
                    _ = queue.push(chain, 64);
                    _ = queue.needs_interrupt();
                }
                _ = queue.enable_notification();
            }
        }
    }
}
