//! The options of new LUKS headers.

use super::Options;
use crate::crypt::{LuksOptions, Rounds};
use crate::error::{Error, Result};

/// Takes those whose names begin with `prefix`.
pub(super) fn take(options: &mut Options<'_>, prefix: &str) -> Result<LuksOptions> {
    let mut take = |name: &str| options.take(&format!("{prefix}{name}"));
    let cipher = take("cipher-alg").unwrap_or("aes-256");
    let mode = take("cipher-mode").unwrap_or("xts");
    let sectors = take("ivgen-alg").unwrap_or("plain64");
    let sectors_hash = take("ivgen-hash-alg").unwrap_or("sha256");
    let hash = take("hash-alg").unwrap_or("sha256");
    let unknown = |name: &str, value: &str| {
        Error::option(format!("{prefix}{name}"), format!("'{value}' is not known here"))
    };
    let key_bits = match cipher {
        "aes-128" => 128,
        "aes-256" => 256,
        _ => return Err(unknown("cipher-alg", cipher)),
    };
    let mode = match (mode, sectors) {
        ("cbc", "essiv") if sectors_hash == "sha256" => "cbc-essiv:sha256".to_owned(),
        ("cbc", "essiv") => return Err(unknown("ivgen-hash-alg", sectors_hash)),
        _ => format!("{mode}-{sectors}"),
    };
    let mode = LuksOptions::MODES
        .into_iter()
        .find(|known| *known == mode)
        .ok_or_else(|| unknown("cipher-mode", &mode))?;
    let hash = LuksOptions::HASHES
        .into_iter()
        .find(|known| *known == hash)
        .ok_or_else(|| unknown("hash-alg", hash))?;
    let rounds = options.number(&format!("{prefix}iterations"))?;
    let milliseconds = options.number(&format!("{prefix}iter-time"))?;
    let rounds = match (rounds, milliseconds) {
        (Some(rounds), _) => Rounds::Number(rounds),
        (None, Some(milliseconds)) => Rounds::Milliseconds(milliseconds),
        (None, None) => LuksOptions::default().rounds,
    };
    Ok(LuksOptions { rounds, key_bits, mode, hash })
}
