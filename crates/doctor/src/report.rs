//! What was found, and how it is printed.

use std::fmt::Write as _;

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Found,
    /// It is there but does less than it could.
    Limited,
    Missing,
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub name: &'static str,
    pub status: Status,
    /// What exactly was seen.
    pub detail: String,
    /// What Guise does because of it, or does instead.
    pub effect: &'static str,
    /// What to change to get it; nothing where it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<&'static str>,
}

impl Finding {
    pub fn found(name: &'static str, detail: impl Into<String>, effect: &'static str) -> Self {
        Finding { name, status: Status::Found, detail: detail.into(), effect, remedy: None }
    }

    pub fn limited(
        name: &'static str,
        detail: impl Into<String>,
        effect: &'static str,
        remedy: &'static str,
    ) -> Self {
        let status = Status::Limited;
        Finding { name, status, detail: detail.into(), effect, remedy: Some(remedy) }
    }

    pub fn missing(
        name: &'static str,
        detail: impl Into<String>,
        effect: &'static str,
        remedy: &'static str,
    ) -> Self {
        let status = Status::Missing;
        Finding { name, status, detail: detail.into(), effect, remedy: Some(remedy) }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Group {
    pub name: &'static str,
    pub findings: Vec<Finding>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub groups: Vec<Group>,
}

/// Columns before a finding's text: two for the margin, a mark, the name.
const TEXT_COLUMN: usize = 22;

impl Report {
    /// The report as text for a terminal of this width.
    pub fn table(&self, width: usize, color: bool) -> String {
        let mut text = String::new();
        for (index, group) in self.groups.iter().enumerate() {
            let (bold, plain) = if color { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
            let gap = if index > 0 { "\n" } else { "" };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{gap}{bold}{}{plain}", group.name);
            for finding in &group.findings {
                finding.print(width.max(TEXT_COLUMN + 20), color, &mut text);
            }
        }
        let missing = self.count(Status::Missing);
        let limited = self.count(Status::Limited);
        let found = self.count(Status::Found);
        let _ = writeln!(text, "\n{found} found, {limited} limited, {missing} missing.");
        text
    }

    fn count(&self, status: Status) -> usize {
        let findings = self.groups.iter().flat_map(|group| &group.findings);
        findings.filter(|finding| finding.status == status).count()
    }
}

impl Finding {
    fn print(&self, width: usize, color: bool, text: &mut String) {
        let (mark, paint) = match self.status {
            Status::Found => ("+", "\x1b[32m"),
            Status::Limited => ("~", "\x1b[33m"),
            Status::Missing => ("-", "\x1b[31m"),
        };
        let (paint, plain) = if color { (paint, "\x1b[0m") } else { ("", "") };
        let room = TEXT_COLUMN - 4;
        let _ = write!(text, "  {paint}{mark}{plain} {:<room$}", self.name);
        let mut sentences = format!("{}. {}.", self.detail, self.effect);
        if let Some(remedy) = self.remedy {
            let _ = write!(sentences, " To change it: {remedy}.");
        }
        let lines = wrap(&sentences, width - TEXT_COLUMN);
        for (index, line) in lines.iter().enumerate() {
            let indent = if index > 0 { TEXT_COLUMN } else { 0 };
            let _ = writeln!(text, "{:indent$}{line}", "");
        }
    }
}

/// Breaks text between words; a word that is too long has a line of its own.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().filter(|line| {
            line.is_empty() || line.chars().count() + 1 + word.chars().count() <= width
        });
        match line {
            Some(line) => {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.push_str(word);
            }
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests;
