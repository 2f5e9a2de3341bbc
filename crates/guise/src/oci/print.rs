//! What `guise oci` prints.

use std::io::{self, Write};

use guise_container::runtime::{Event, Listed, ProcessLine};
use guise_container::state::{State, Status};
use serde_json::{Value, json};

use super::options::{Options, Usage};

/// Prints a line; a reader that is gone is no failure of the command.
fn line(text: &str) -> bool {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}

/// A JSON document for people to read.
pub fn json(value: &Value) {
    line(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// `state`.
pub fn state(state: &State, status: Status) {
    let mut value = json!(state.public(status));
    // The specification wants these even where they say little.
    value["pid"] = json!(if status == Status::Stopped { 0 } else { state.pid });
    value["annotations"] = json!(state.annotations);
    value["owner"] = json!(state.owner.to_string());
    json(&value);
}

/// An event as one line; false when nobody reads any more.
pub fn event(event: &Event) -> bool {
    line(&json!(event).to_string())
}

fn format(options: &Options) -> Result<bool, Usage> {
    match options.value("format").unwrap_or("table") {
        "table" => Ok(false),
        "json" => Ok(true),
        other => Err(Usage::new(format!("--format {other:?}: table or json"))),
    }
}

/// `list`.
pub fn list(all: &[Listed], options: &Options) -> Result<(), Usage> {
    if options.has("quiet") {
        for container in all {
            line(&container.id);
        }
    } else if format(options)? {
        line(&json!(all).to_string());
    } else {
        let rows = all.iter().map(|c| {
            [&c.id, &c.pid.to_string(), c.status, &c.bundle, &c.created, &c.owner]
                .map(str::to_owned)
        });
        table(["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"], rows.collect());
    }
    Ok(())
}

/// `ps`.
pub fn processes(all: &[ProcessLine], options: &Options) -> Result<(), Usage> {
    if format(options)? {
        let pids: Vec<i32> = all.iter().map(|p| p.pid).collect();
        line(&json!(pids).to_string());
        return Ok(());
    }
    let rows = all.iter().map(|p| {
        let time =
            format!("{:02}:{:02}:{:02}", p.seconds / 3600, p.seconds / 60 % 60, p.seconds % 60);
        [p.uid.to_string(), p.pid.to_string(), p.parent.to_string(), time, p.command.clone()]
    });
    table(["UID", "PID", "PPID", "TIME", "CMD"], rows.collect());
    Ok(())
}

/// Columns as wide as they need to be.
fn table<const N: usize>(heads: [&str; N], rows: Vec<[String; N]>) {
    let mut widths = heads.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let print = |cells: [&str; N]| {
        let mut text = String::new();
        for (cell, width) in cells.into_iter().zip(widths) {
            text.push_str(&format!("{cell:width$}  "));
        }
        line(text.trim_end());
    };
    print(heads);
    for row in &rows {
        print(std::array::from_fn(|i| row[i].as_str()));
    }
}
