use super::*;

#[test]
fn debug_exit_tells_the_code() {
    let seen: Arc<Mutex<Vec<PowerRequest>>> = Arc::default();
    let sink = seen.clone();
    let port = DebugExit::new(Arc::new(move |request| sink.lock().unwrap().push(request)));
    port.write(0, &[0]);
    port.write(0, &[0x10, 0, 0, 0]);
    port.write(0, &[0xff; 4]);
    let codes = [1, 33, u32::MAX].map(PowerRequest::Exit);
    assert_eq!(*seen.lock().unwrap(), codes);
}

#[test]
fn the_test_device_has_lines_a_register_and_memory() {
    let seen: Arc<Mutex<Vec<(usize, bool)>>> = Arc::default();
    let lines = (0..24).map(|index| {
        let seen = seen.clone();
        Arc::new(move |level: bool| seen.lock().unwrap().push((index, level))) as Arc<dyn IrqLine>
    });
    let (ports, memory) = (Bus::new(), Bus::new());
    TestDevice::new(lines.collect()).attach(&ports, &memory).unwrap();
    ports.write(0x2005, &[1]);
    ports.write(0x2017, &[1]);
    ports.write(0x2005, &[0]);
    assert_eq!(*seen.lock().unwrap(), [(5, true), (23, true), (5, false)]);
    ports.write(0xe0, &0x1234_5678_u32.to_le_bytes());
    let mut data = [0; 2];
    ports.read(0xea, &mut data);
    assert_eq!(data, [0x34, 0x12]);
    ports.write(0xe4, &[0; 4]);
    memory.write(0xff00_fff8, &[1, 2, 3, 4, 5, 6, 7, 8]);
    let mut data = [0; 8];
    memory.read(0xff00_fff8, &mut data);
    assert_eq!(data, [1, 2, 3, 4, 5, 6, 7, 8]);
    memory.read(0xff00_fffc, &mut data);
    assert_eq!(data, [5, 6, 7, 8, 0xff, 0xff, 0xff, 0xff]);
}
