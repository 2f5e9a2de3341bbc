//! `.dockerignore`: what of the context is left out.

use crate::pattern;

/// The rules of a file; later ones win.
#[derive(Debug, Default)]
pub struct Ignore {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    parts: Vec<String>,
    /// Begins with `!`: takes back in.
    includes: bool,
}

impl Ignore {
    pub fn parse(text: &str) -> Self {
        let rules = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| {
                let (includes, line) = match line.strip_prefix('!') {
                    Some(line) => (true, line.trim_start()),
                    None => (false, line),
                };
                let parts = line
                    .split('/')
                    .filter(|p| !p.is_empty() && *p != ".")
                    .map(str::to_owned)
                    .collect();
                Rule { parts, includes }
            })
            .filter(|rule: &Rule| !rule.parts.is_empty())
            .collect();
        Ignore { rules }
    }

    /// Whether a path is left out: itself, or a directory above it.
    pub fn excludes(&self, path: &[u8]) -> bool {
        let parts: Vec<&[u8]> =
            path.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".").collect();
        let mut excluded = false;
        for rule in &self.rules {
            if rule.includes != excluded {
                continue;
            }
            let pattern: Vec<&str> = rule.parts.iter().map(String::as_str).collect();
            if (1..=parts.len()).any(|end| pattern::matches(&pattern, &parts[..end])) {
                excluded = !rule.includes;
            }
        }
        excluded
    }

    /// Whether something below a directory that is left out may be taken back.
    pub fn has_exceptions(&self) -> bool {
        self.rules.iter().any(|r| r.includes)
    }
}

#[cfg(test)]
mod tests;
