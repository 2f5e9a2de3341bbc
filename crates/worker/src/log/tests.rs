use super::*;

fn lines(records: &[Record]) -> String {
    records.iter().map(|record| String::from_utf8_lossy(&record.bytes).into_owned()).collect()
}

fn all(directory: &Path, from: Option<Position>) -> Vec<Record> {
    let mut reader = Reader::new(directory, from);
    std::iter::from_fn(|| reader.next_record().unwrap()).collect()
}

#[test]
fn what_was_written_is_read_and_old_files_go() {
    let directory = tempfile::tempdir().unwrap();
    let limits = job::Log { file_bytes: 64, files: 2 };
    let mut writer = Writer::open(directory.path(), limits).unwrap();
    let mut middle = None;
    for number in 0..20 {
        if number == 18 {
            middle = Some(writer.position());
        }
        let stream = if number % 2 == 0 { Stream::Stdout } else { Stream::Stderr };
        writer.append(stream, format!("line {number}\n").as_bytes()).unwrap();
    }
    assert_eq!(numbers(directory.path()).unwrap().len(), 2);
    let text = lines(&all(directory.path(), None));
    assert!(text.ends_with("line 18\nline 19\n") && !text.contains("line 1\n"), "{text}");
    let late = all(directory.path(), middle);
    assert_eq!(lines(&late), "line 18\nline 19\n");
    assert_eq!(late[1].stream, Stream::Stderr);
}

#[test]
fn a_reader_goes_on_where_there_was_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let mut reader = Reader::new(directory.path(), None);
    assert_eq!(reader.next_record().unwrap(), None);
    let limits = job::Log { file_bytes: 40, files: 9 };
    let mut writer = Writer::open(directory.path(), limits).unwrap();
    let mut seen = String::new();
    for number in 0..9 {
        writer.append(Stream::Stdout, format!("{number} and more\n").as_bytes()).unwrap();
        while let Some(record) = reader.next_record().unwrap() {
            seen.push_str(&lines(&[record]));
        }
        assert!(seen.ends_with(&format!("{number} and more\n")));
    }
    assert_eq!(seen.lines().count(), 9);
}

#[test]
fn a_torn_record_is_the_end_and_the_next_life_begins_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(directory.path(), job::Log::default()).unwrap();
    writer.append(Stream::Stdout, b"whole\n").unwrap();
    writer.append(Stream::Stdout, b"torn\n").unwrap();
    drop(writer);
    let file = path(directory.path(), 0);
    let length = fs::metadata(&file).unwrap().len();
    OpenOptions::new().write(true).open(&file).unwrap().set_len(length - 2).unwrap();
    let mut writer = Writer::open(directory.path(), job::Log::default()).unwrap();
    writer.append(Stream::Stdout, b"next\n").unwrap();
    assert_eq!(lines(&all(directory.path(), None)), "whole\nnext\n");
    // Garbage is no reason to allocate or to fail.
    fs::write(path(directory.path(), 2), [0xff; 40]).unwrap();
    assert_eq!(lines(&all(directory.path(), None)), "whole\nnext\n");
}

#[test]
fn a_tail_is_so_many_lines() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(directory.path(), job::Log::default()).unwrap();
    writer.append(Stream::Stdout, b"one\ntwo\nthr").unwrap();
    writer.append(Stream::Stdout, b"ee\nfour\n").unwrap();
    for (count, expected) in [
        (0, ""),
        (1, "four\n"),
        (2, "three\nfour\n"),
        (3, "two\nthree\nfour\n"),
        (9, "one\ntwo\nthree\nfour\n"),
    ] {
        assert_eq!(lines(&tail(directory.path(), count).unwrap().0), expected, "{count}");
    }
}

#[test]
fn what_a_worker_left_in_place_of_a_file_leads_nowhere() {
    let directory = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(other.path(), job::Log::default()).unwrap();
    writer.append(Stream::Stdout, b"another's\n").unwrap();
    for target in [path(other.path(), 0), "/no/such".into(), directory.path().into()] {
        let link = path(directory.path(), 3);
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(Reader::new(directory.path(), None).next_record().is_err(), "{target:?}");
        fs::remove_file(link).unwrap();
    }
    fs::write(path(directory.path(), u64::MAX), "").unwrap();
    assert_eq!(Reader::new(directory.path(), None).next_record().unwrap(), None);
    Writer::open(directory.path(), job::Log::default()).unwrap();
}
