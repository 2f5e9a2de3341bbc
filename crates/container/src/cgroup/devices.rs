//! Which devices a container may use: the configuration's rules and those
//! every container needs.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::error::{Context, Result};
use crate::spec::DeviceRule;

/// One rule; `None` stands for any number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub allow: bool,
    /// `a`, `b` or `c`.
    pub kind: char,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub read: bool,
    pub write: bool,
    pub mknod: bool,
}

/// What every container may use: making nodes (not using them), the harmless
/// character devices, terminals.
const ALWAYS: [(char, Option<u32>, Option<u32>, &str); 11] = [
    ('c', None, None, "m"),
    ('b', None, None, "m"),
    ('c', Some(1), Some(3), "rwm"),
    ('c', Some(1), Some(5), "rwm"),
    ('c', Some(1), Some(7), "rwm"),
    ('c', Some(1), Some(8), "rwm"),
    ('c', Some(1), Some(9), "rwm"),
    ('c', Some(5), Some(0), "rwm"),
    ('c', Some(5), Some(1), "rwm"),
    ('c', Some(5), Some(2), "rwm"),
    ('c', Some(136), None, "rwm"),
];

impl Rule {
    fn new(allow: bool, kind: char, major: Option<u32>, minor: Option<u32>, access: &str) -> Self {
        Rule {
            allow,
            kind,
            major,
            minor,
            read: access.contains('r'),
            write: access.contains('w'),
            mknod: access.contains('m'),
        }
    }

    /// Whether it speaks of every device and access.
    pub fn is_everything(&self) -> bool {
        self.kind == 'a' && self.major.is_none() && self.minor.is_none()
    }

    /// As the v1 files want it.
    fn line(&self) -> String {
        let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
        let mut access = String::new();
        for (wanted, letter) in [(self.read, 'r'), (self.write, 'w'), (self.mknod, 'm')] {
            if wanted {
                access.push(letter);
            }
        }
        format!("{} {}:{} {access}", self.kind, number(self.major), number(self.minor))
    }
}

/// All rules in the order in which they count: the last that matches decides.
/// Nothing is allowed that no rule names.
pub fn rules(configured: &[DeviceRule]) -> Vec<Rule> {
    let number = |n: Option<i64>| n.and_then(|n| u32::try_from(n).ok());
    let mut rules = vec![Rule::new(false, 'a', None, None, "rwm")];
    for rule in configured {
        let kind = rule.kind.as_deref().and_then(|k| k.chars().next()).unwrap_or('a');
        let access = rule.access.as_deref().filter(|a| !a.is_empty()).unwrap_or("rwm");
        let rule = Rule::new(rule.allow, kind, number(rule.major), number(rule.minor), access);
        if rule.is_everything() {
            rules.clear();
        }
        rules.push(rule);
    }
    for (kind, major, minor, access) in ALWAYS {
        rules.push(Rule::new(true, kind, major, minor, access));
    }
    rules
}

/// Writes the rules to a v1 cgroup.
pub fn write_v1(directory: &Path, rules: &[Rule]) -> Result<()> {
    if crate::namespaces::in_user_namespace() {
        // Only the host's root may; the container's nodes are the host's own,
        // mounted one by one.
        return Ok(());
    }
    let allows_everything = rules.first().is_some_and(|r| r.allow && r.is_everything());
    let open = |name: &str| {
        let path = directory.join(name);
        File::options().write(true).open(&path).during(|| format!("open {}", path.display()))
    };
    let (mut allow, mut deny) = (open("devices.allow")?, open("devices.deny")?);
    for rule in rules {
        if allows_everything && rule.allow && !rule.is_everything() {
            continue;
        }
        let file = if rule.allow { &mut allow } else { &mut deny };
        let line = if rule.is_everything() { "a".to_owned() } else { rule.line() };
        // The kernel takes one rule with each write.
        file.write_all(line.as_bytes())
            .during(|| format!("restrict devices with {line:?} in {}", directory.display()))?;
    }
    Ok(())
}
