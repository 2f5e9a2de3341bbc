//! Tables, JSON and YAML.

use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::Value;

use crate::Failure;

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Json,
    Yaml,
}

#[derive(Args)]
pub struct Output {
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl Output {
    pub fn format(&self) -> Format {
        self.output
    }

    pub fn is_table(&self) -> bool {
        self.output == Format::Table
    }

    /// Prints a value whole, or as the table that is made of it.
    pub fn print<T: Serialize>(
        &self,
        value: &T,
        header: &[&str],
        rows: impl FnOnce(&T) -> Vec<Vec<String>>,
    ) -> Result<(), Failure> {
        match self.output {
            Format::Table => table(header, &rows(value)),
            _ => whole(value, self.output)?,
        }
        Ok(())
    }
}

/// Prints all of a value; what has no table is JSON.
pub fn whole(value: &impl Serialize, format: Format) -> Result<(), Failure> {
    json(&serde_json::to_value(value).map_err(Failure::failed)?, format);
    Ok(())
}

/// The same for what is JSON already.
pub fn json(value: &Value, format: Format) {
    crate::pipe::end_with_the_reader();
    match format {
        Format::Yaml => print!("{}", yaml(value)),
        Format::Table | Format::Json => println!("{value:#}"),
    }
}

pub fn table(header: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let print = |cells: Vec<&str>| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        println!("{}", line.trim_end());
    };
    crate::pipe::end_with_the_reader();
    print(header.to_vec());
    for row in rows {
        print(row.iter().map(String::as_str).collect());
    }
}

/// A value as YAML. Texts are quoted as JSON does it, which YAML reads the same.
fn yaml(value: &Value) -> String {
    let mut text = String::new();
    write(&mut text, value, 0);
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

fn write(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    let nested = |inner: &Value| match inner {
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => false,
    };
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, inner) in map {
                let plain = key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
                let key = if plain { key.clone() } else { Value::from(key.as_str()).to_string() };
                text.push_str(&format!("{indent}{key}:"));
                text.push(if nested(inner) { '\n' } else { ' ' });
                write(text, inner, depth + 1);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for inner in list {
                text.push_str(&format!("{indent}- "));
                let mut below = String::new();
                write(&mut below, inner, depth + 1);
                text.push_str(below.trim_start());
            }
        }
        other => text.push_str(&format!("{other}\n")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn yaml_of_nested_values() {
        let value = json!([{"name": "web: 1", "ports": [80, 443], "none": null, "empty": {}}, []]);
        let expected =
            "- empty: {}\n  name: \"web: 1\"\n  none: null\n  ports:\n    - 80\n    - 443\n- []\n";
        assert_eq!(super::yaml(&value), expected);
    }
}
