//! A machine from its start to its end, with what the user wants to happen on the way:
//! hand-overs from one engine to the next.

use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use guise_machine::{Ending, Machine};

use crate::Failure;
use crate::engine::EngineChoice;

/// `--handover ENGINE[,at=EXPR]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandOver {
    to: EngineChoice,
    at: At,
}

/// When a machine changes its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// So long after the start, or after the hand-over before.
    Time(Duration),
    /// Before the instruction at this linear address.
    Address(u64),
    /// After so many accesses of devices.
    Exits(u64),
    /// When the engine cannot go on.
    Failure,
}

impl FromStr for HandOver {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (engine, at) = match text.split_once(',') {
            Some((engine, at)) => (engine, Some(at)),
            None => (text, None),
        };
        let to = EngineChoice::from_str(engine, false)
            .ok()
            .filter(|engine| *engine != EngineChoice::Auto)
            .ok_or("the engine is kvm, soft or interp")?;
        let at = match at {
            None => At::Time(Duration::ZERO),
            Some(at) => parse_at(at.strip_prefix("at=").ok_or("after the comma comes at=…")?)?,
        };
        Ok(HandOver { to, at })
    }
}

fn parse_at(text: &str) -> Result<At, String> {
    let number = |digits: &str| digits.parse::<f64>().ok().filter(|number| *number >= 0.0);
    if text == "failure" {
        return Ok(At::Failure);
    }
    if let Some(digits) = text.strip_prefix("0x") {
        let address = u64::from_str_radix(digits, 16);
        return address.map(At::Address).map_err(|_| format!("{text} is no address"));
    }
    if let Some(count) = text.strip_prefix("exits:") {
        return count.parse().map(At::Exits).map_err(|_| format!("{count} is no count"));
    }
    let seconds = match text.strip_suffix("ms") {
        Some(digits) => number(digits).map(|number| number / 1000.0),
        None => text.strip_suffix('s').and_then(number),
    };
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .map(At::Time)
        .ok_or_else(|| "at= is a time (2s, 50ms), an address (0x…), exits:N or failure".to_owned())
}

/// Runs a machine until it ends or the deadline has come; nothing then.
pub fn drive(
    machine: &Machine,
    hand_overs: &[HandOver],
    deadline: Option<Instant>,
) -> Result<Option<Ending>, Failure> {
    for hand_over in hand_overs {
        let mut limit = deadline;
        match hand_over.at {
            At::Time(time) => {
                let due = Instant::now() + time;
                limit = Some(deadline.map_or(due, |deadline| deadline.min(due)));
            }
            At::Address(address) => machine.stop_before(address).map_err(Failure::failed)?,
            At::Exits(count) => machine.stop_after_exits(count),
            At::Failure => {}
        }
        let ending = run_until(machine, limit);
        let due = match (&ending, hand_over.at) {
            (None, At::Time(_)) => deadline.is_none_or(|deadline| Instant::now() < deadline),
            (Some(Ending::Stopped { .. }), At::Address(_)) => true,
            (Some(Ending::Reached), At::Exits(_)) => true,
            (Some(Ending::Engine(error)), At::Failure) => {
                eprintln!("guise: {error}; the machine goes on with {:?}", hand_over.to);
                true
            }
            _ => false,
        };
        if !due {
            return Ok(ending);
        }
        machine.pause().map_err(Failure::failed)?;
        let engine = crate::engine::choose(hand_over.to)?.engine;
        machine.hand_over(&*engine).map_err(Failure::failed)?;
    }
    Ok(run_until(machine, deadline))
}

fn run_until(machine: &Machine, limit: Option<Instant>) -> Option<Ending> {
    machine.resume();
    machine.wait(limit.map(|limit| limit.saturating_duration_since(Instant::now())))
}

#[cfg(test)]
mod tests;
