use super::*;
use crate::queue::driver::BUFFERS;
use crate::transport::guest::Guest;

#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn output_comes_out() {
    let output = Output::default();
    let mut guest = Guest::new(Console::new(Box::new(output.clone())));
    guest.start(SIZE, false, true);
    guest.queues[1].put(BUFFERS, b"hello console");
    guest.queues[1].add(&[(BUFFERS, 6, false), (BUFFERS + 6, 7, false)]);
    guest.notify(1);
    assert_eq!(guest.queues[1].wait_used().1, 0);
    assert_eq!(*output.0.lock().unwrap(), b"hello console");
}

#[test]
fn input_waits_for_buffers_and_buffers_for_input() {
    let console = Console::new(Box::new(Output::default()));
    let mut guest = Guest::new(console.clone());
    assert_eq!(console.input(b"early"), 5);
    guest.start(0, true, false);
    guest.queues[0].add(&[(BUFFERS, 3, true)]);
    guest.notify(0);
    assert_eq!(guest.queues[0].wait_used().1, 3);
    assert_eq!(&guest.queues[0].get::<3>(BUFFERS), b"ear");
    guest.queues[0].add(&[(BUFFERS, 100, true)]);
    guest.notify(0);
    assert_eq!(guest.queues[0].wait_used().1, 2);
    guest.queues[0].add(&[(BUFFERS, 100, true)]);
    guest.notify(0);
    console.input(b"late");
    assert_eq!(guest.queues[0].wait_used().1, 4);
    assert_eq!(&guest.queues[0].get::<4>(BUFFERS), b"late");
}

#[test]
fn input_is_bounded() {
    let console = Console::new(Box::new(Output::default()));
    let data = vec![b'x'; LARGEST_BACKLOG + 10];
    assert_eq!(console.input(&data), LARGEST_BACKLOG);
    assert_eq!(console.input(&data), 0);
    assert!(!console.wait_for_room(Duration::from_millis(1)));
    let mut guest = Guest::new(console.clone());
    guest.start(0, false, false);
    guest.queues[0].add(&[(BUFFERS, 10, true)]);
    guest.notify(0);
    assert!(console.wait_for_room(Duration::from_secs(60)));
}

#[test]
fn the_size_is_told() {
    let console = Console::new(Box::new(Output::default()));
    let mut guest = Guest::new(console.clone());
    console.set_size(80, 25);
    guest.start(SIZE, false, false);
    guest.write(0x10, &0_u16.to_le_bytes());
    assert_eq!(guest.config::<4>(0), [80, 0, 25, 0]);
    console.set_size(300, 50);
    console.set_size(300, 50);
    assert_eq!(guest.config::<4>(0), [44, 1, 50, 0]);
    assert_eq!(*guest.messages.lock().unwrap(), [0x40]);
}
