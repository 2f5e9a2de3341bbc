//! A Containerfile as logical lines: continuations joined, comments left out,
//! here-documents attached, flags split off.

use crate::error::{Error, Result};
use crate::words;

/// Longer files are not Containerfiles.
const LONGEST_FILE: usize = 1 << 20;

/// One instruction, not yet understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Where it begins, counted from one.
    pub number: usize,
    /// In upper case.
    pub keyword: String,
    /// `--name=value` words before the arguments.
    pub flags: Vec<(String, Option<String>)>,
    /// The arguments as they were written.
    pub rest: String,
    pub documents: Vec<Document>,
}

/// A here-document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub name: String,
    pub text: String,
    /// Whether variables in it are replaced: its name had no quotes.
    pub expands: bool,
}

/// All lines, and the character that continues and escapes.
pub fn split(text: &str) -> Result<(Vec<Line>, char)> {
    if text.len() > LONGEST_FILE {
        return Err(Error::syntax(1, "the file is larger than 1 MiB"));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let escape = escape_of(text)?;
    let mut source = text.lines().enumerate();
    let mut lines = Vec::new();
    while let Some((index, first)) = source.next() {
        let first = first.trim();
        if first.is_empty() || first.starts_with('#') {
            continue;
        }
        let mut logical = String::new();
        let mut part = first;
        loop {
            match part.strip_suffix(escape) {
                None => {
                    logical.push_str(part);
                    break;
                }
                Some(beginning) => logical.push_str(beginning),
            }
            // Comments and empty lines within an instruction do not end it.
            let next = source.by_ref().map(|(_, l)| l.trim_end()).find(|l| {
                let l = l.trim_start();
                !l.is_empty() && !l.starts_with('#')
            });
            match next {
                Some(next) => part = next,
                None => break,
            }
        }
        let number = index + 1;
        let mut line = read(number, logical.trim())?;
        if matches!(line.keyword.as_str(), "RUN" | "COPY" | "ADD") && !line.rest.starts_with('[') {
            for (name, strips, expands) in markers(&line.rest) {
                let mut text = String::new();
                loop {
                    let Some((_, next)) = source.next() else {
                        return Err(Error::syntax(number, format!("<<{name} has no end")));
                    };
                    let next = if strips { next.trim_start_matches('\t') } else { next };
                    if next == name {
                        break;
                    }
                    text.push_str(next);
                    text.push('\n');
                }
                line.documents.push(Document { name, text, expands });
            }
        }
        lines.push(line);
    }
    Ok((lines, escape))
}

/// The `# escape=` directive, which stands before anything else.
fn escape_of(text: &str) -> Result<char> {
    for (index, line) in text.lines().enumerate() {
        let Some(comment) = line.trim().strip_prefix('#') else { break };
        let Some((name, value)) = comment.split_once('=') else { break };
        if !name.trim().eq_ignore_ascii_case("escape") {
            continue;
        }
        return match value.trim() {
            "\\" => Ok('\\'),
            "`" => Ok('`'),
            _ => Err(Error::syntax(index + 1, "escape is \\ or `")),
        };
    }
    Ok('\\')
}

fn read(number: usize, text: &str) -> Result<Line> {
    let (keyword, mut rest) = match text.split_once(char::is_whitespace) {
        Some((keyword, rest)) => (keyword, rest.trim_start()),
        None => (text, ""),
    };
    let mut flags = Vec::new();
    while let Some(flag) = rest.strip_prefix("--") {
        let (flag, after) = flag.split_once(char::is_whitespace).unwrap_or((flag, ""));
        if flag.is_empty() {
            break;
        }
        flags.push(match flag.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (flag.to_owned(), None),
        });
        rest = after.trim_start();
    }
    Ok(Line {
        number,
        keyword: keyword.to_ascii_uppercase(),
        flags,
        rest: rest.to_owned(),
        documents: Vec::new(),
    })
}

/// The here-documents that a line announces: name, whether leading tabs go,
/// whether variables are replaced.
fn markers(rest: &str) -> Vec<(String, bool, bool)> {
    let mut found = Vec::new();
    for word in words::split(rest) {
        let Some(name) = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")
        else {
            continue;
        };
        let (name, strips) = match name.strip_prefix('-') {
            Some(name) => (name, true),
            None => (name, false),
        };
        let plain = name.trim_matches(['"', '\'']);
        let valid = !plain.is_empty()
            && plain.bytes().all(|c| c.is_ascii_alphanumeric() || b"_.-".contains(&c));
        if valid {
            found.push((plain.to_owned(), strips, plain == name));
        }
    }
    found
}

#[cfg(test)]
mod tests;
