//! `ps`: the processes of a container.

use std::fs;

use crate::error::Result;
use crate::state::Store;

/// The unit of times in /proc, the same on every architecture since Linux 2.6.
const TICKS_PER_SECOND: u64 = 100;

/// One process.
#[derive(Debug)]
pub struct ProcessLine {
    pub pid: i32,
    pub parent: i32,
    pub uid: u32,
    /// CPU time used, in seconds.
    pub seconds: u64,
    pub command: String,
}

/// All processes; one that ends meanwhile is left out.
pub fn ps(store: &Store, id: &str) -> Result<Vec<ProcessLine>> {
    let state = store.find(id)?.state()?;
    let mut pids = state.cgroup().processes()?;
    if pids.is_empty() && state.process().is_some() {
        // No cgroup of its own to ask.
        pids.push(state.pid);
    }
    Ok(pids.into_iter().filter_map(describe).collect())
}

fn describe(pid: i32) -> Option<ProcessLine> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (start, end) = (stat.find('(')?, stat.rfind(')')?);
    let fields: Vec<&str> = stat[end + 2..].split(' ').collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let uid = status
        .lines()
        .find_map(|l| l.strip_prefix("Uid:"))
        .and_then(|l| l.split_whitespace().nth(1))
        .and_then(|u| u.parse().ok())?;
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = if arguments.is_empty() {
        format!("[{}]", &stat[start + 1..end])
    } else {
        let words = arguments.strip_suffix(&[0]).unwrap_or(&arguments);
        let text = words.iter().map(|b| if *b == 0 { b' ' } else { *b }).collect::<Vec<u8>>();
        // Control characters of a container's making stay out of the terminal.
        String::from_utf8_lossy(&text)
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect()
    };
    Some(ProcessLine {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        uid,
        seconds: ticks / TICKS_PER_SECOND,
        command,
    })
}
