use super::*;

fn read(device: &FwCfg, item: u16, length: usize) -> Vec<u8> {
    device.write(PORTS, &item.to_le_bytes());
    (0..length)
        .map(|_| {
            let mut byte = [0];
            device.read(PORTS + 1, &mut byte);
            byte[0]
        })
        .collect()
}

#[test]
fn items_are_read_byte_by_byte() {
    let device = FwCfg::builder().item(CPU_COUNT, vec![4, 0]).build();
    assert_eq!(read(&device, SIGNATURE, 4), b"QEMU");
    assert_eq!(read(&device, ID, 4), [1, 0, 0, 0]);
    assert_eq!(read(&device, CPU_COUNT, 4), [4, 0, 0, 0]);
    assert_eq!(read(&device, 0x7777, 2), [0, 0]);
}

#[test]
fn files_are_in_the_directory() {
    let device =
        FwCfg::builder().file("etc/a", vec![1, 2, 3]).file(&"b".repeat(80), vec![9]).build();
    let directory = read(&device, DIRECTORY, 4 + 2 * 64);
    assert_eq!(directory[..4], [0, 0, 0, 2]);
    assert_eq!(directory[4..18], [0, 0, 0, 3, 0, 0x20, 0, 0, b'e', b't', b'c', b'/', b'a', 0]);
    assert_eq!(directory[68..74], [0, 0, 0, 1, 0, 0x21]);
    assert_eq!(directory[131], 0);
    assert_eq!(read(&device, 0x20, 3), [1, 2, 3]);
}

#[test]
fn the_position_is_part_of_the_state() {
    let device = FwCfg::builder().build();
    read(&device, SIGNATURE, 2);
    let saved = serde_json::to_string(&device.state()).unwrap();
    let other = FwCfg::builder().build();
    other.set_state(&serde_json::from_str(&saved).unwrap());
    let mut data = [0; 2];
    other.read(PORTS + 1, &mut data);
    assert_eq!(&data, b"MU");
    other.write(PORTS, &[1]);
    other.read(PORTS, &mut data);
    assert_eq!(data, [0xff; 2]);
}
