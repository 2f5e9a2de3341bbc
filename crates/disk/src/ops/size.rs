//! Sizes as people write them.

use crate::error::{Error, Result};

/// A number of bytes with an optional suffix: `k`, `M`, `G`, `T`, `P`, `E`,
/// powers of 1024; also with a fraction.
pub fn parse_size(text: &str) -> Result<u64> {
    let bad = || Error::option("size", format!("'{text}' is not a size (try 512, 64k, 1.5G, 2T)"));
    let text = text.trim();
    let (number, suffix) = match text.find(|c: char| c.is_ascii_alphabetic()) {
        Some(at) if !text.starts_with("0x") => text.split_at(at),
        _ => (text, ""),
    };
    let shift = match suffix.to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        "e" => 60,
        _ => return Err(bad()),
    };
    if let Some(hex) = number.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).map_err(|_| bad());
    }
    if let Ok(whole) = number.parse::<u64>() {
        return whole
            .checked_mul(1 << shift)
            .filter(|&size| size <= i64::MAX as u64)
            .ok_or_else(bad);
    }
    let value = number.parse::<f64>().map_err(|_| bad())? * (1_u64 << shift) as f64;
    if !(0.0..=i64::MAX as f64).contains(&value) {
        return Err(bad());
    }
    Ok(value as u64)
}

#[cfg(test)]
mod tests;
