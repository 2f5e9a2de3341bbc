//! Where `guise oci` writes warnings and errors: the file its caller names, in
//! the form its caller reads, or standard error.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;

use guise_container::state::timestamp;
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::options::Global;

/// Receives the library's messages.
struct Log {
    level: Level,
    file: Option<(Mutex<File>, bool)>,
}

/// Sends the library's messages where the caller wants them.
pub fn install(global: &Global) {
    let level = if global.debug { Level::DEBUG } else { Level::WARN };
    let file = global.log.as_deref().and_then(open).map(|f| (Mutex::new(f), global.log_json));
    // Fails only if something was installed before, and nothing is.
    let _ = tracing::subscriber::set_global_default(Log { level, file });
}

/// Writes the error that ends the command to the log file, if there is one.
pub fn error(global: &Global, text: &str) {
    if let Some(mut file) = global.log.as_deref().and_then(open) {
        let _ = file.write_all(line("error", text, global.log_json).as_bytes());
    }
}

fn open(path: &Path) -> Option<File> {
    OpenOptions::new().append(true).create(true).open(path).ok()
}

fn line(level: &str, text: &str, as_json: bool) -> String {
    let time = timestamp();
    if as_json {
        format!("{}\n", json!({ "level": level, "msg": text, "time": time }))
    } else {
        format!("{time} {level}: {text}\n")
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level
    }

    fn event(&self, event: &Event<'_>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        let level = if level == "warn" { "warning" } else { &level };
        match &self.file {
            Some((file, as_json)) => {
                if let Ok(mut file) = file.lock() {
                    let _ = file.write_all(line(level, &message.0, *as_json).as_bytes());
                }
            }
            None => eprintln!("guise oci: {level}: {}", message.0),
        }
    }

    // The library uses no spans.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// The text of an event.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}");
        }
    }
}
