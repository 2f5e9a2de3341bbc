//! `ls` and `cat`: what a guest divided its disk into, and the bytes of a part,
//! without mounting anything.

use std::io::Write;

use clap::Args;
use guise_disk::graph::{Image, Node};
use guise_disk::partitions::{Partition, Scheme, partitions};

use super::Persona;
use super::common::{Failure, Opening, Outcome};
use super::inspect::Output;
use super::output::{catch_interrupts, human, interrupted, print_json};

#[derive(Args)]
pub struct LsArgs {
    #[command(flatten)]
    opening: Opening,
    /// Format of the image; found out if not given
    #[arg(short = 'f', long)]
    format: Option<String>,
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
    file: String,
}

pub fn ls(args: LsArgs, persona: Persona) -> Outcome {
    let image = args.opening.named(&args.file, args.format.as_deref(), None, persona)?.read()?;
    let table = partitions(&image)?;
    if args.output == Output::Json {
        print_json(&table);
        return Ok(0);
    }
    let Some(table) = table else {
        println!("'{}' has no partition table", args.file);
        return Ok(0);
    };
    let scheme = match table.scheme {
        Scheme::Gpt => "GPT",
        Scheme::Mbr => "MBR",
    };
    println!("{scheme} {}", table.id);
    println!("{:<5}{:<16}{:<12}{:<24}Name", "#", "Start", "Size", "Type");
    for part in &table.partitions {
        let mark = if part.bootable { "*" } else { "" };
        println!(
            "{:<5}{:<16}{:<12}{:<24}{}",
            format!("{}{mark}", part.number),
            part.start,
            human(part.length),
            part.kind,
            part.name
        );
    }
    if let Some(damage) = table.damage {
        eprintln!("guise disk: '{}': {damage}", args.file);
    }
    Ok(0)
}

#[derive(Args)]
pub struct CatArgs {
    #[command(flatten)]
    opening: Opening,
    /// Format of the image; found out if not given
    #[arg(short = 'f', long)]
    format: Option<String>,
    file: String,
    /// Number of the partition, as `ls` tells it; the whole disk if not given
    partition: Option<u32>,
}

pub fn cat(args: CatArgs, persona: Persona) -> Outcome {
    let image = args.opening.named(&args.file, args.format.as_deref(), None, persona)?.read()?;
    let (mut at, end) = match args.partition {
        None => (0, image.size()),
        Some(number) => {
            let part = find(&image, &args.file, number)?;
            (part.start, part.start + part.length)
        }
    };
    catch_interrupts();
    let mut buf = vec![0; 1 << 20];
    let mut output = std::io::stdout().lock();
    while at < end {
        if interrupted() {
            return Err(Failure::new("interrupted; the output is incomplete"));
        }
        let part = &mut buf[..(end - at).min(1 << 20) as usize];
        image.read(at, part)?;
        output
            .write_all(part)
            .map_err(|e| Failure::new(format!("write to standard output: {e}")))?;
        at += part.len() as u64;
    }
    Ok(0)
}

fn find(image: &Image, file: &str, number: u32) -> Result<Partition, Failure> {
    let table = partitions(image)?;
    let table = table.ok_or_else(|| Failure::new(format!("'{file}' has no partition table")))?;
    table.partitions.into_iter().find(|part| part.number == number).ok_or_else(|| {
        Failure::new(format!(
            "'{file}' has no partition {number}; `guise disk ls` lists those that it has"
        ))
    })
}
