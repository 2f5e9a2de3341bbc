//! Patterns for paths: `*` and `?` within a component, `[a-z]`, and where it is
//! allowed `**` for any number of components.

/// Whether a pattern matches a path, both in components.
pub fn matches(pattern: &[&str], path: &[&[u8]]) -> bool {
    // For each place in the path, whether the pattern so far can end there: no
    // backtracking, whatever the pattern.
    let mut reached = vec![false; path.len() + 1];
    reached[0] = true;
    for part in pattern {
        let mut next = vec![false; path.len() + 1];
        if *part == "**" {
            let mut any = false;
            for at in 0..=path.len() {
                any |= reached[at];
                next[at] = any;
            }
        } else {
            for at in 0..path.len() {
                next[at + 1] = reached[at] && component(part.as_bytes(), path[at]);
            }
        }
        reached = next;
    }
    reached[path.len()]
}

/// Whether a pattern without `/` matches a name.
pub fn component(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where to go on when the last star has to take one more byte.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if p < pattern.len() && pattern[p] == b'*' {
            p += 1;
            retry = Some((p, n));
            continue;
        }
        if n == name.len() && p == pattern.len() {
            return true;
        }
        if n < name.len()
            && let Some(used) = one(&pattern[p..], name[n])
        {
            p += used;
            n += 1;
            continue;
        }
        match retry {
            Some((at, from)) if from < name.len() => {
                p = at;
                n = from + 1;
                retry = Some((at, n));
            }
            _ => return false,
        }
    }
}

/// Matches one byte; gives how much of the pattern that took.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [b'[', rest @ ..] => {
            let close = rest.iter().skip(1).position(|b| *b == b']').map(|at| at + 1);
            let Some(close) = close else { return (byte == b'[').then_some(1) };
            let (inverted, set) = match &rest[..close] {
                [b'^' | b'!', set @ ..] => (true, set),
                set => (false, set),
            };
            let mut found = false;
            let mut at = 0;
            while at < set.len() {
                if at + 2 < set.len() && set[at + 1] == b'-' {
                    found |= (set[at]..=set[at + 2]).contains(&byte);
                    at += 3;
                } else {
                    found |= set[at] == byte;
                    at += 1;
                }
            }
            (found != inverted).then_some(close + 2)
        }
        [plain, ..] => (*plain == byte).then_some(1),
    }
}

/// Whether a pattern is more than a name.
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

#[cfg(test)]
mod tests;
