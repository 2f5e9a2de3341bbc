//! What `--handover` takes.

use super::*;

#[test]
fn hand_overs_are_read() {
    let read = |text: &str| HandOver::from_str(text).ok().map(|read| (read.to, read.at));
    let soft = EngineChoice::Soft;
    assert_eq!(read("soft"), Some((soft, At::Time(Duration::ZERO))));
    assert_eq!(read("soft,at=50ms"), Some((soft, At::Time(Duration::from_millis(50)))));
    assert_eq!(read("soft,at=1.5s"), Some((soft, At::Time(Duration::from_millis(1500)))));
    assert_eq!(read("kvm,at=0xff"), Some((EngineChoice::Kvm, At::Address(0xff))));
    assert_eq!(read("interp,at=exits:7"), Some((EngineChoice::Interp, At::Exits(7))));
    assert_eq!(read("soft,at=failure"), Some((soft, At::Failure)));
    for wrong in ["", "auto", "qemu", "soft,", "soft,at=", "soft,at=-1s", "soft,at=0xz", "soft,7s"]
    {
        assert_eq!(read(wrong), None, "{wrong}");
    }
}
