//! Words as a Containerfile has them: quotes, escapes and variables.

/// How deep `${A:-${B:-…}}` may go.
const DEEPEST: usize = 16;

/// Finds the value of a variable.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Splits at white space that is not quoted; quotes and escapes stay.
pub fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut escaped = false;
    for c in text.chars() {
        if escaped {
            escaped = false;
        } else if c == '\\' && quote != Some('\'') {
            escaped = true;
        } else if quote == Some(c) {
            quote = None;
        } else if quote.is_none() && (c == '"' || c == '\'') {
            quote = Some(c);
        } else if quote.is_none() && c.is_whitespace() {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            continue;
        }
        word.push(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Replaces variables and takes quotes and escapes away.
pub fn expand(text: &str, escape: char, lookup: Lookup<'_>) -> Result<String, String> {
    Expander { escape, lookup }.run(text, true, 0)
}

/// Replaces variables only: what a here-document wants.
pub fn expand_text(text: &str, escape: char, lookup: Lookup<'_>) -> Result<String, String> {
    Expander { escape, lookup }.run(text, false, 0)
}

struct Expander<'a> {
    escape: char,
    lookup: Lookup<'a>,
}

impl Expander<'_> {
    fn run(&self, text: &str, unquotes: bool, depth: usize) -> Result<String, String> {
        if depth > DEEPEST {
            return Err("variables are nested too deeply".into());
        }
        let mut out = String::new();
        let mut rest = text;
        let mut quoted = false;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            match c {
                '\'' if unquotes && !quoted => {
                    let (inside, after) =
                        rest.split_once('\'').ok_or("a single quote is not closed")?;
                    out.push_str(inside);
                    rest = after;
                }
                '"' if unquotes => quoted = !quoted,
                c if c == self.escape => {
                    let Some(next) = rest.chars().next() else { break };
                    rest = &rest[next.len_utf8()..];
                    // Within double quotes only some characters can be escaped.
                    let plain = next == '$' || next == self.escape || (unquotes && next == '"');
                    if !plain && (quoted || !unquotes) {
                        out.push(c);
                    }
                    out.push(next);
                }
                '$' => rest = self.variable(rest, &mut out, depth)?,
                c => out.push(c),
            }
        }
        if quoted { Err("a double quote is not closed".into()) } else { Ok(out) }
    }

    /// Reads what follows a dollar sign and gives what follows that.
    fn variable<'t>(
        &self,
        rest: &'t str,
        out: &mut String,
        depth: usize,
    ) -> Result<&'t str, String> {
        let Some(inside) = rest.strip_prefix('{') else {
            let end = rest.find(|c| !is_name_part(c)).unwrap_or(rest.len());
            if end == 0 {
                out.push('$');
            } else {
                out.push_str(&(self.lookup)(&rest[..end]).unwrap_or_default());
            }
            return Ok(&rest[end..]);
        };
        let end = closing(inside).ok_or("${ has no }")?;
        let (inside, after) = (&inside[..end], &inside[end + 1..]);
        let name_end = inside.find(|c| !is_name_part(c)).unwrap_or(inside.len());
        let (name, operator) = inside.split_at(name_end);
        if name.is_empty() {
            return Err(format!("${{{inside}}} names no variable"));
        }
        let value = (self.lookup)(name);
        // With a colon an empty value counts as none.
        let (operator, value) = match operator.strip_prefix(':') {
            Some(operator) => (operator, value.filter(|v| !v.is_empty())),
            None => (operator, value),
        };
        let mut operator = operator.chars();
        let kind = operator.next();
        let word = operator.as_str();
        match (kind, value) {
            (None, value) => out.push_str(&value.unwrap_or_default()),
            (Some('-'), Some(value)) | (Some('?'), Some(value)) => out.push_str(&value),
            (Some('-'), None) | (Some('+'), Some(_)) => {
                out.push_str(&self.run(word, true, depth + 1)?);
            }
            (Some('+'), None) => {}
            (Some('?'), None) => {
                let why = self.run(word, true, depth + 1)?;
                return Err(if why.is_empty() { format!("{name} is not set") } else { why });
            }
            (Some(_), _) => return Err(format!("${{{inside}}} is not understood")),
        }
        Ok(after)
    }
}

fn is_name_part(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Where the brace closes that was open at the beginning.
fn closing(text: &str) -> Option<usize> {
    let mut open = 1;
    for (at, c) in text.char_indices() {
        match c {
            '{' => open += 1,
            '}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(at);
        }
    }
    None
}

#[cfg(test)]
mod tests;
