use guise_build::Sink;
use guise_image::progress::Progress;

use super::{CUT, Log, MOST, Meters, Told, forget, path, read};

#[test]
fn lines_and_output_stay_apart_and_can_be_read_on() {
    let state = tempfile::tempdir().unwrap();
    let file = path(state.path(), "1");
    let log = Log::create(state.path(), "1").unwrap();
    let meters = Meters::default();
    let told = Told { meters: &meters, log: &log };
    told.note("[1/2] FROM scratch");
    log.take(b"no end");
    told.note("[2/2] RUN true");
    assert_eq!(meters.read().2, "[2/2] RUN true");
    let all = b"[1/2] FROM scratch\nno end\n[2/2] RUN true\n";
    assert_eq!(read(&file, 0).unwrap(), all);
    assert_eq!(read(&file, all.len() as u64 - 5).unwrap(), b"true\n");
    assert_eq!(read(&file, 1 << 20).unwrap(), b"");
    forget(state.path(), "1");
    assert!(read(&file, 0).is_err());
}

#[test]
fn what_prints_without_end_fills_no_disk() {
    let state = tempfile::tempdir().unwrap();
    let log = Log::create(state.path(), "2").unwrap();
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..20 {
        log.take(&piece);
    }
    let file = path(state.path(), "2");
    assert_eq!(std::fs::metadata(&file).unwrap().len(), MOST + CUT.len() as u64);
    assert_eq!(read(&file, MOST).unwrap(), CUT);
}
