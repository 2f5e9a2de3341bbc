//! How results look: sizes, progress, text and JSON.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guise_disk::format::Detail;
use guise_disk::ops::Progress;

/// A size in the largest unit that leaves three digits, as QEMU prints it.
pub fn human(size: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    while unit + 1 < UNITS.len() && size as f64 / (1_u64 << (unit * 10)) as f64 >= 1000.0 {
        unit += 1;
    }
    let value = size as f64 / (1_u64 << (unit * 10)) as f64;
    format!("{} {}", three_digits(value), UNITS[unit])
}

/// `%0.3g`: three significant digits, no zeroes at the end.
fn three_digits(value: f64) -> String {
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// A point in time as year, month, day and time of day, in this place's time.
pub fn date(seconds: i64) -> String {
    // SAFETY: `tm` is plain integers and a pointer, for which zero is valid.
    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live objects of the right types.
    if unsafe { libc::localtime_r(&seconds, &mut parts) }.is_null() {
        return seconds.to_string();
    }
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
        parts.tm_year + 1900,
        parts.tm_mon + 1,
        parts.tm_mday,
        parts.tm_hour,
        parts.tm_min,
        parts.tm_sec
    )
}

/// Prints a tree of facts, indented as QEMU's tools do.
pub fn print_details(details: &[(String, Detail)], indent: usize) {
    for (key, value) in details {
        print_detail(&key.replace('-', " "), value, indent);
    }
}

fn print_detail(name: &str, value: &Detail, indent: usize) {
    let pad = " ".repeat(indent * 4);
    match value {
        Detail::Bool(value) => println!("{pad}{name}: {value}"),
        Detail::Number(value) => println!("{pad}{name}: {value}"),
        Detail::Text(value) => println!("{pad}{name}: {value}"),
        Detail::List(items) => {
            println!("{pad}{name}:");
            for (index, item) in items.iter().enumerate() {
                print_detail(&format!("[{index}]"), item, indent + 1);
            }
        }
        Detail::Map(entries) => {
            println!("{pad}{name}:");
            print_details(entries, indent + 1);
        }
    }
}

/// Set by the first interrupt; the operation then ends at a safe place.
static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn on_interrupt(_signal: libc::c_int) {
    if STOP.swap(true, Ordering::Relaxed) {
        // A second interrupt does not wait.
        // SAFETY: `_exit` is one of the functions that a signal handler may call.
        unsafe { libc::_exit(130) };
    }
}

/// Lets interrupts end long operations safely.
pub fn catch_interrupts() {
    let handler: extern "C" fn(libc::c_int) = on_interrupt;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only touches an atomic and calls `_exit`.
        unsafe { libc::signal(signal, handler as *const () as libc::sighandler_t) };
    }
}

/// Whether somebody wants the program to end.
pub fn interrupted() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Shows how far an operation is, where that is asked for.
pub struct Meter {
    shown: bool,
    last: AtomicU64,
}

impl Meter {
    pub fn new(shown: bool) -> Self {
        catch_interrupts();
        Self { shown, last: AtomicU64::new(u64::MAX) }
    }

    /// Ends the line.
    pub fn end(&self) {
        if self.shown {
            println!();
        }
    }
}

impl Progress for Meter {
    fn at(&self, done: u64, total: u64) {
        if !self.shown {
            return;
        }
        let hundredths = if total == 0 {
            10_000
        } else {
            (u128::from(done) * 10_000 / u128::from(total)) as u64
        };
        let step = if std::io::stdout().is_terminal() { 20 } else { 100 };
        let before = self.last.load(Ordering::Relaxed);
        if before != u64::MAX && hundredths < before + step && hundredths != 10_000 {
            return;
        }
        if before == hundredths {
            return;
        }
        self.last.store(hundredths, Ordering::Relaxed);
        print!("    ({:.2}/100%)\r", hundredths as f64 / 100.0);
        // A closed pipe must not end the operation.
        let _ignored = std::io::stdout().flush();
    }

    fn stop(&self) -> bool {
        STOP.load(Ordering::Relaxed)
    }
}

/// JSON as QEMU's tools indent it.
pub fn print_json<T: serde::Serialize>(value: &T) {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    // Facts about images consist of numbers and text: they can be written.
    if value.serialize(&mut serializer).is_ok() {
        println!("{}", String::from_utf8_lossy(&text));
    }
}
