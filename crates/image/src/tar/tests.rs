use std::io::Read;

use super::*;

fn write(entries: &[(Entry, &[u8])]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, data) in entries {
        writer.append(entry, *data).unwrap();
    }
    writer.finish().unwrap()
}

fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut reader = Reader::new(bytes);
    let mut all = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut data = Vec::new();
        reader.read_to_end(&mut data)?;
        all.push((entry, data));
    }
    Ok(all)
}

#[test]
fn everything_an_entry_can_say_survives() {
    let mut file = Entry::new("a/file", Kind::File, 0o4755);
    file.size = 5;
    file.uid = 4_000_000_000;
    file.gid = 7;
    file.mtime = Time { seconds: -77, nanoseconds: 0 };
    file.xattrs = vec![
        (b"user.x".to_vec(), b"line\nbreak=\0zero".to_vec()),
        (b"security.capability".to_vec(), vec![0xff; 20]),
    ];
    let long = ["d"; 60].join("/").into_bytes();
    let odd = vec![b'n'; 180];
    let entries = [
        (Entry::new("a/", Kind::Directory, 0o1777), &b""[..]),
        (file, b"hello"),
        (Entry::new("link", Kind::Symlink(vec![b't'; 150]), 0o777), b""),
        (Entry::new("hard", Kind::Hardlink(b"a/file".to_vec()), 0o644), b""),
        (Entry::new("null", Kind::Character(Device { major: 1, minor: 3 }), 0o666), b""),
        (Entry::new("sda", Kind::Block(Device { major: 8, minor: 4095 }), 0o660), b""),
        (Entry::new("pipe", Kind::Fifo, 0o600), b""),
        (Entry::new(long, Kind::File, 0o644), b""),
        (Entry::new(odd, Kind::File, 0o644), b""),
    ];
    let back = read(&write(&entries)).unwrap();
    assert_eq!(back.len(), entries.len());
    for ((entry, data), (back, back_data)) in entries.iter().zip(&back) {
        assert_eq!(entry, back);
        assert_eq!(*data, &back_data[..]);
    }
}

#[test]
fn gnu_tar_reads_what_we_write_and_we_read_what_it_writes() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}/{}", "x".repeat(200), "y".repeat(120));
    let file = dir.path().join(&long);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, b"some data").unwrap();
    std::os::unix::fs::symlink("z".repeat(300), dir.path().join("link")).unwrap();
    for format in ["gnu", "pax", "posix"] {
        let out = std::process::Command::new("tar")
            .args(["--format", format, "--sort=name", "-C"])
            .arg(dir.path())
            .args(["-c", "."])
            .output()
            .expect("GNU tar is in every Debian");
        assert!(out.status.success());
        let entries = read(&out.stdout).unwrap();
        let found = entries.iter().find(|(e, _)| e.path.ends_with(b"yyy")).unwrap();
        assert_eq!(found.0.path, format!("./{long}").into_bytes(), "{format}");
        assert_eq!(found.1, b"some data");
        assert!(entries.iter().any(|(e, _)| e.kind == Kind::Symlink(vec![b'z'; 300])), "{format}");
    }
    let mut entry = Entry::new(long.clone(), Kind::File, 0o644);
    entry.size = 3;
    let archive = dir.path().join("ours.tar");
    std::fs::write(&archive, write(&[(entry, b"abc")])).unwrap();
    let out = std::process::Command::new("tar").arg("-tf").arg(&archive).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(String::from_utf8(out.stdout).unwrap().trim(), long);
}

#[test]
fn times_before_the_epoch_keep_their_fraction() {
    let mut records = pax::Records::default();
    let mut bytes = Vec::new();
    pax::push(&mut bytes, b"mtime", b"-1.25");
    pax::parse(&bytes, &mut records).unwrap();
    assert_eq!(records.mtime, Some(Time { seconds: -2, nanoseconds: 750_000_000 }));
}

#[test]
fn damaged_archives_are_errors_and_never_panics() {
    let mut entry = Entry::new("f", Kind::File, 0o644);
    entry.size = 1000;
    entry.xattrs = vec![(b"user.a".to_vec(), b"b".to_vec())];
    let good = write(&[(entry, &[9; 1000])]);
    // Every truncation within an entry is noticed.
    for length in [1, 511, 513, 1500, 2000, 2500] {
        assert!(read(&good[..length]).is_err(), "{length}");
    }
    // Every flipped byte of a header is an error or a different entry.
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0x81;
        let _ = read(&bytes);
    }
}

#[test]
fn lengths_that_would_fill_memory_are_refused() {
    let (mut block, _) = header::build(&header::Header {
        name: b"x".to_vec(),
        link: Vec::new(),
        kind: b'x',
        mode: 0,
        uid: 0,
        gid: 0,
        size: 1 << 32,
        mtime: 0,
        major: 0,
        minor: 0,
    });
    assert!(matches!(read(&block), Err(TarError::TooLong(..))));
    // The same by a GNU base-256 number that is larger than 64 bits.
    block[124..136].fill(0xff);
    block[124] = 0x80;
    assert!(read(&block).is_err());
    for records in
        ["5 a=", "99999999999999999999 a=b\n", "0 a=b\n", "3 =\n", "nonsense", "6 a\nb=\n"]
    {
        assert!(
            pax::parse(records.as_bytes(), &mut pax::Records::default()).is_err(),
            "{records:?}"
        );
    }
}

#[test]
fn types_that_layers_do_not_have_are_named() {
    let (block, _) = header::build(&header::Header {
        name: b"sparse".to_vec(),
        link: Vec::new(),
        kind: b'S',
        mode: 0,
        uid: 0,
        gid: 0,
        size: 0,
        mtime: 0,
        major: 0,
        minor: 0,
    });
    let error = read(&block).unwrap_err();
    assert!(error.to_string().contains("'S'"), "{error}");
}
