//! The command line under the name `qemu-io`: single requests to a disk, as
//! test suites written for that program send them.

use std::io::BufRead;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use guise_disk::graph::{Image, Node};
use guise_disk::ops::parse_size;

use super::Persona;
use super::common::{Failure, Opening};

/// Send single requests to a disk.
#[derive(Parser)]
#[command(name = "qemu-io", disable_version_flag = true)]
struct QemuIo {
    #[command(flatten)]
    opening: Opening,
    /// Format of the image; found out if not given
    #[arg(short = 'f', long)]
    format: Option<String>,
    /// A command; without any, commands come from standard input
    #[arg(short = 'c', long = "cmd")]
    commands: Vec<String>,
    /// Open for reading only
    #[arg(short = 'r', long)]
    read_only: bool,
    /// Past the page cache
    #[arg(short = 'n', long)]
    nocache: bool,
    /// Cache mode
    #[arg(short = 't', long)]
    cache: Option<String>,
    file: String,
}

/// Runs under the name `qemu-io`.
pub fn run(arguments: Vec<std::ffi::OsString>) -> ExitCode {
    let args = match QemuIo::try_parse_from(arguments) {
        Ok(args) => args,
        Err(error) => {
            let help = !error.use_stderr();
            // Nothing can be done when even the message cannot be printed.
            let _unprintable = error.print();
            return if help { ExitCode::SUCCESS } else { ExitCode::from(1) };
        }
    };
    match session(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(failure) => {
            eprintln!("qemu-io: {}", failure.text);
            ExitCode::from(1)
        }
    }
}

/// `false`: a command failed, which was told already.
fn session(args: QemuIo) -> Result<bool, Failure> {
    let cache = if args.nocache { Some("none") } else { args.cache.as_deref() };
    let named = args.opening.named(&args.file, args.format.as_deref(), cache, Persona::QemuImg)?;
    let image = if args.read_only { named.read()? } else { named.write(Persona::QemuImg)? };
    let mut all_well = true;
    let mut run = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match command(&image, &words) {
            Ok(more) => more,
            Err(text) => {
                if !text.is_empty() {
                    println!("{text}");
                }
                all_well = false;
                true
            }
        }
    };
    if args.commands.is_empty() {
        for line in std::io::stdin().lock().lines() {
            let line = line.map_err(|e| Failure::new(format!("standard input: {e}")))?;
            if !run(&line) {
                break;
            }
        }
    } else {
        for line in &args.commands {
            if !run(line) {
                break;
            }
        }
    }
    image.close()?;
    Ok(all_well)
}

/// The options of one command: letters, some with a value, then the rest.
struct Words<'a> {
    letters: Vec<(char, &'a str)>,
    rest: Vec<&'a str>,
}

impl<'a> Words<'a> {
    /// `plain` letters have no value.
    fn parse(words: &[&'a str], with_value: &str, plain: &str) -> Result<Self, String> {
        let mut parsed = Self { letters: Vec::new(), rest: Vec::new() };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
                parsed.rest.push(word);
                continue;
            };
            for letter in letters.chars() {
                let value = if with_value.contains(letter) {
                    words.next().copied().ok_or(format!("option -{letter} needs a value"))?
                } else if plain.contains(letter) {
                    ""
                } else {
                    return Err(format!("invalid option -- '{letter}'"));
                };
                parsed.letters.push((letter, value));
            }
        }
        Ok(parsed)
    }

    fn has(&self, letter: char) -> bool {
        self.letters.iter().any(|(have, _)| *have == letter)
    }

    fn size(&self, letter: char) -> Result<Option<usize>, String> {
        let Some((_, value)) = self.letters.iter().find(|(have, _)| *have == letter) else {
            return Ok(None);
        };
        let size = parse_size(value).map_err(|_| format!("non-numeric argument -- {value}"))?;
        Ok(Some(usize::try_from(size).unwrap_or(usize::MAX)))
    }

    fn byte(&self, letter: char) -> Result<Option<u8>, String> {
        let Some((_, value)) = self.letters.iter().find(|(have, _)| *have == letter) else {
            return Ok(None);
        };
        let parsed = match value.strip_prefix("0x") {
            Some(hex) => u8::from_str_radix(hex, 16),
            None => value.parse(),
        };
        parsed.map(Some).map_err(|_| format!("{value} is not a valid pattern byte"))
    }

    /// Offset, and the sum of the lengths that follow.
    fn place(&self) -> Result<(u64, u64), String> {
        let [offset, lengths @ ..] = &self.rest[..] else {
            return Err("offset and length are missing".to_owned());
        };
        let number =
            |text: &str| parse_size(text).map_err(|_| format!("non-numeric argument -- {text}"));
        let mut len = 0_u64;
        for length in lengths {
            len = len.saturating_add(number(length)?);
        }
        if lengths.is_empty() || len > 1 << 31 {
            return Err("length argument is missing or too large".to_owned());
        }
        Ok((number(offset)?, len))
    }
}

/// Runs one command. `Ok(false)` ends the session.
fn command(image: &Image, words: &[&str]) -> Result<bool, String> {
    let Some((&name, rest)) = words.split_first() else { return Ok(true) };
    match name {
        "read" | "readv" | "aio_read" | "r" => read(image, &Words::parse(rest, "Pls", "Cqvp")?)?,
        "write" | "writev" | "aio_write" | "w" => {
            write(image, &Words::parse(rest, "P", "Ccfnquz")?)?
        }
        "discard" | "d" => {
            let words = Words::parse(rest, "", "Cq")?;
            let (offset, len) = words.place()?;
            let begin = Instant::now();
            image.discard(offset, len).map_err(|e| failed("discard", &e))?;
            report(&words, "discard", offset, len, begin.elapsed());
        }
        "flush" | "f" => image.flush().map_err(|e| format!("flush failed: {e}"))?,
        "aio_flush" => {}
        "length" | "l" => println!("{}", amount(image.size())),
        "map" => map(image)?,
        "alloc" | "a" => alloc(image, &Words::parse(rest, "", "")?)?,
        "truncate" => {
            let size = rest.last().and_then(|size| parse_size(size).ok());
            let size = size.ok_or("non-numeric argument")?;
            image
                .resize(size, guise_disk::format::Preallocation::Off)
                .map_err(|e| format!("truncate failed: {e}"))?;
        }
        "sleep" => {
            let ms =
                rest.first().and_then(|ms| ms.parse().ok()).ok_or("sleep takes milliseconds")?;
            std::thread::sleep(Duration::from_millis(ms));
        }
        "quit" | "q" => return Ok(false),
        other => return Err(format!("command \"{other}\" not found")),
    }
    Ok(true)
}

fn read(image: &Image, words: &Words<'_>) -> Result<(), String> {
    let (offset, len) = words.place()?;
    let mut buf = vec![0xab; len as usize];
    let begin = Instant::now();
    image.read(offset, &mut buf).map_err(|e| failed("read", &e))?;
    let elapsed = begin.elapsed();
    // The pattern may be wanted in a part only.
    let from = words.size('s')?.unwrap_or(0).min(buf.len());
    let count = words.size('l')?.unwrap_or(usize::MAX).min(buf.len() - from);
    let part = &buf[from..from + count];
    let mut wrong = None;
    if words.byte('P')?.is_some_and(|pattern| part.iter().any(|&byte| byte != pattern)) {
        let at = offset + from as u64;
        wrong = Some(format!("Pattern verification failed at offset {at}, {count} bytes"));
    }
    if words.has('v') {
        dump(offset, &buf);
    }
    // It is told before the line that says how much was read.
    if let Some(wrong) = &wrong {
        println!("{wrong}");
    }
    report(words, "read", offset, len, elapsed);
    if wrong.is_some() { Err(String::new()) } else { Ok(()) }
}

/// Sixteen bytes a line, as numbers and as letters.
fn dump(offset: u64, bytes: &[u8]) {
    for (line, bytes) in bytes.chunks(16).enumerate() {
        let numbers: String = bytes.iter().map(|byte| format!("{byte:02x} ")).collect();
        let letter = |byte: &u8| if byte.is_ascii_alphanumeric() { *byte as char } else { '.' };
        let letters: String = bytes.iter().map(letter).collect();
        println!("{:08x}:  {numbers} {letters}", offset + line as u64 * 16);
    }
}

fn write(image: &Image, words: &Words<'_>) -> Result<(), String> {
    let (offset, len) = words.place()?;
    let begin = Instant::now();
    let failed = |e: guise_disk::Error| failed("write", &e);
    if words.has('z') {
        image.write_zeroes(offset, len, words.has('u')).map_err(failed)?;
    } else {
        let data = vec![words.byte('P')?.unwrap_or(0xcd); len as usize];
        let cluster = image.format().cluster_size();
        if words.has('c') {
            let codec = image.format().codec().ok_or("this image has no compressed clusters")?;
            if len != cluster || !offset.is_multiple_of(cluster) {
                return Err("compressed writes are of one whole cluster".to_owned());
            }
            let mut packed = Vec::new();
            if codec.encoder().pack(&data, data.len() - 1, &mut packed) {
                image.write_packed(offset, &packed).map_err(failed)?;
            } else {
                image.write(offset, &data).map_err(failed)?;
            }
        } else {
            image.write(offset, &data).map_err(failed)?;
        }
    }
    if words.has('f') {
        image.flush().map_err(failed)?;
    }
    report(words, "wrote", offset, len, begin.elapsed());
    Ok(())
}

/// A number of bytes with its unit: whole, or with three digits behind the point.
fn amount(size: u64) -> String {
    const UNITS: [&str; 7] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = size.checked_ilog2().unwrap_or(0) / 10;
    let whole = 1_u64 << (unit * 10);
    let name = UNITS[unit as usize];
    match size % whole {
        0 => format!("{} {name}", size / whole),
        _ => format!("{:.3} {name}", size as f64 / whole as f64),
    }
}

/// What the system would say of a failure.
fn failed(what: &str, error: &guise_disk::Error) -> String {
    match error {
        guise_disk::Error::OutOfRange { .. } => format!("{what} failed: Input/output error"),
        error => format!("{what} failed: {error}"),
    }
}

fn report(words: &Words<'_>, what: &str, offset: u64, len: u64, elapsed: Duration) {
    if words.has('q') {
        return;
    }
    let seconds = elapsed.as_secs_f64().max(1e-9);
    println!("{what} {len}/{len} bytes at offset {offset}");
    println!(
        "{}, 1 ops; {:05.2} sec ({}/sec and {:.4} ops/sec)",
        amount(len),
        elapsed.as_secs_f64(),
        amount((len as f64 / seconds) as u64),
        1.0 / seconds
    );
}

fn map(image: &Image) -> Result<(), String> {
    let size = image.size();
    let mut offset = 0;
    while offset < size {
        let (allocated, len) = stretch(image, offset, size - offset)?;
        println!(
            "{} ({len:#x}) bytes {} allocated at offset {} ({offset:#x})",
            amount(len),
            if allocated { "   " } else { "not" },
            amount(offset)
        );
        offset += len;
    }
    Ok(())
}

/// How far the top layer goes on being allocated, or not.
fn stretch(image: &Image, offset: u64, len: u64) -> Result<(bool, u64), String> {
    let state = |at: u64| {
        let status = image.status(at, offset + len - at).map_err(|e| format!("map failed: {e}"))?;
        Ok::<_, String>((status.present && status.depth == 0, status.len))
    };
    let (first, mut done) = state(offset)?;
    while done < len {
        let (next, more) = state(offset + done)?;
        if next != first {
            break;
        }
        done += more;
    }
    Ok((first, done))
}

fn alloc(image: &Image, words: &Words<'_>) -> Result<(), String> {
    let offset = words.rest.first().and_then(|text| parse_size(text).ok());
    let offset = offset.ok_or("offset is missing")?;
    let len = words.rest.get(1).and_then(|text| parse_size(text).ok()).unwrap_or(512);
    if offset.checked_add(len).is_none_or(|end| end > image.size()) {
        return Err(format!("offset {offset} lies outside the disk"));
    }
    let (mut done, mut sum) = (0, 0);
    while done < len {
        let (allocated, part) = stretch(image, offset + done, len - done)?;
        sum += if allocated { part } else { 0 };
        done += part;
    }
    println!("{sum}/{len} bytes allocated at offset {}", amount(offset));
    Ok(())
}
