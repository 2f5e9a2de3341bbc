use super::*;

fn taken(text: &str) -> Result<(String, BlockOptions), String> {
    let mut options = BlockOptions::default();
    take_options(text, &mut options).map(|rest| (rest, options))
}

#[test]
fn options_of_the_device_and_of_the_image_are_told_apart() {
    let (rest, options) =
        taken("a,,b.img,format=raw,serial=root,iops=100,readonly,bps=2M,burst=3").unwrap();
    assert_eq!(rest, "a,,b.img,format=raw,readonly");
    assert_eq!(options.serial, "root");
    let burst = Duration::from_secs(3);
    assert_eq!(options.rate, Rate { operations: Some(100), bytes: Some(2 << 20), burst });
}

#[test]
fn nonsense_is_refused() {
    for text in ["f,iops=0", "f,iops=many", "f,burst=2", "f,serial=123456789012345678901"] {
        assert!(taken(text).is_err(), "{text}");
    }
}
