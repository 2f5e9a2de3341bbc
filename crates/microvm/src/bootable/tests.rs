use super::*;

#[test]
fn newer_versions_are_newer() {
    for (older, newer) in [
        ("6.1.0-9-amd64", "6.1.0-10-amd64"),
        ("6.1.0-10-amd64", "6.12.1-amd64"),
        ("6.1", "6.1.1"),
        ("6.1.0-amd64", "6.1.0-cloud"),
        ("99999999999999999999", "999999999999999999999"),
    ] {
        assert_eq!(compare(older, newer), Ordering::Less, "{older} {newer}");
        assert_eq!(compare(newer, older), Ordering::Greater, "{older} {newer}");
        assert_eq!(compare(newer, newer), Ordering::Equal);
    }
}

#[test]
fn grub_is_asked_no_more_than_needed() {
    let configuration = "menuentry 'one' {\n\
        \tlinux\t/boot/vmlinuz-6.1 root=UUID=abc ro console=tty0 console=ttyS0,115200 quiet $extra\n\
        }\nlinux /vmlinuz-6.2 root=$root\n linux\n linux16 /vmlinuz-6.3 root=/dev/vda1";
    assert_eq!(words_for(configuration, "vmlinuz-6.1").unwrap(), "root=UUID=abc ro quiet");
    assert_eq!(words_for(configuration, "vmlinuz-6.2"), None);
    assert_eq!(words_for(configuration, "vmlinuz-6.3").unwrap(), "root=/dev/vda1");
    assert_eq!(words_for(configuration, "vmlinuz-6"), None);
}
