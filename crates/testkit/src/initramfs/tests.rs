use super::*;

#[test]
fn an_archive_has_aligned_entries_and_a_trailer() {
    let mut archive = Initramfs::new();
    archive.directory("d");
    archive.file("d/five", 0o644, b"12345");
    archive.character_device("d/console", 5, 1);
    let bytes = archive.finish();
    assert_eq!(bytes.len() % 512, 0);
    assert_eq!(
        entries(&bytes),
        [
            ("d".to_owned(), 0o040_755, 0),
            ("d/five".to_owned(), 0o100_644, 5),
            ("d/console".to_owned(), 0o020_600, 0),
            ("TRAILER!!!".to_owned(), 0, 0),
        ]
    );
}

/// Name, mode and size of each entry, read as the kernel reads them.
fn entries(bytes: &[u8]) -> Vec<(String, u32, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        let field = |index: usize| {
            let start = at + 6 + index * 8;
            let text = std::str::from_utf8(&bytes[start..start + 8]).unwrap();
            u32::from_str_radix(text, 16).unwrap()
        };
        assert_eq!(&bytes[at..at + 6], b"070701");
        let (mode, size, name_length) = (field(1), field(6) as usize, field(11) as usize);
        let name = &bytes[at + 110..at + 110 + name_length - 1];
        found.push((String::from_utf8(name.to_vec()).unwrap(), mode, size));
        if name == b"TRAILER!!!" {
            return found;
        }
        at = (at + 110 + name_length).next_multiple_of(4) + size.next_multiple_of(4);
    }
}
