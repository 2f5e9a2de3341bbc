//! Whether this host has the processors that an instance asks for.
//!
//! No instance gets more of them than there are where it may run: more vCPUs than processors only
//! wait for each other.

use guise_api::{ApiError, Code, Resources};
use guise_container::process::schedule::parse_cpus;

/// As cgroup v2 has it.
const WEIGHTS: std::ops::RangeInclusive<u64> = 1..=10_000;

/// The processors that this daemon may use, and with it what it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Processors {
    numbers: Vec<usize>,
    /// A limit on their time may leave less than all of them.
    count: usize,
}

impl Processors {
    fn of_host() -> Processors {
        let all = 0..rustix::thread::CpuSet::MAX_CPU;
        let numbers: Vec<usize> = match rustix::thread::sched_getaffinity(None) {
            Ok(set) => all.filter(|number| set.is_set(*number)).collect(),
            Err(_) => vec![0],
        };
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        Processors { count: count.min(numbers.len()), numbers }
    }
}

/// Refuses what this host has not, or nobody could mean.
pub fn check(asked: &Resources) -> Result<(), ApiError> {
    let Resources { cpus, cpu_weight, cpuset, .. } = asked;
    // The host is not looked at for who asks for nothing.
    match cpus.is_some() || cpu_weight.is_some() || cpuset.is_some() {
        true => check_on(&Processors::of_host(), asked),
        false => Ok(()),
    }
}

fn check_on(host: &Processors, asked: &Resources) -> Result<(), ApiError> {
    if let Some(weight) = asked.cpu_weight
        && !WEIGHTS.contains(&weight)
    {
        return Err(ApiError::invalid(format!("{weight} is no weight of processors"))
            .hint("weights are from 1 to 10000, and 100 where none is said"));
    }
    let chosen = asked.cpuset.as_deref().map(|list| chosen(list, host)).transpose()?;
    let Some(cpus) = asked.cpus else { return Ok(()) };
    if !cpus.is_finite() || cpus < 0.01 {
        return Err(ApiError::invalid(format!("{cpus} processors are none")));
    }
    let (count, where_) = match (&chosen, &asked.cpuset) {
        (Some(count), Some(list)) => (*count, format!("--cpuset {list}")),
        _ => (host.count, "this host".to_owned()),
    };
    if cpus > count as f64 {
        return Err(ApiError::new(
            Code::Exhausted,
            format!("{cpus} processors were asked for, and {where_} has {count}"),
        )
        .hint(format!("ask for {count} at the most")));
    }
    Ok(())
}

/// How many processors a list names, all of which are there.
fn chosen(list: &str, host: &Processors) -> Result<usize, ApiError> {
    let known = |byte: u8| byte.is_ascii_digit() || byte == b',' || byte == b'-';
    let numbers = Some(list).filter(|list| list.bytes().all(known)).and_then(parse_cpus);
    let mut numbers = numbers.ok_or_else(|| {
        ApiError::invalid(format!("{list:?} is no list of processors"))
            .hint("it is numbers and ranges of them: 0,2-3")
    })?;
    numbers.sort_unstable();
    numbers.dedup();
    if let Some(missing) = numbers.iter().find(|number| !host.numbers.contains(number)) {
        return Err(ApiError::new(
            Code::Exhausted,
            format!(
                "processor {missing} was asked for, and this host has {}",
                listed(&host.numbers)
            ),
        )
        .hint("choose among these with --cpuset"));
    }
    Ok(numbers.len())
}

/// Sorted numbers as a list of ranges.
fn listed(numbers: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    let text = |(first, last): (usize, usize)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.into_iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests;
