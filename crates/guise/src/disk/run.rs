//! `bench`.

use std::time::Instant;

use clap::Args;
use guise_disk::graph::{Image, Node};
use guise_disk::ops::parse_size;

use super::Persona;
use super::common::{Failure, Opening, Outcome};

#[derive(Args)]
pub struct BenchArgs {
    #[command(flatten)]
    opening: Opening,
    /// Format of the image
    #[arg(short = 'f', long)]
    format: Option<String>,
    /// Requests
    #[arg(short, long, default_value_t = 75_000)]
    count: u64,
    /// Requests under way at once
    #[arg(short, long, default_value_t = 64)]
    depth: usize,
    /// First byte
    #[arg(short, long, default_value = "0")]
    offset: String,
    /// Size of a request
    #[arg(short = 's', long, default_value = "4096")]
    buffer_size: String,
    /// Distance between requests; the size of one if not given
    #[arg(short = 'S', long)]
    step_size: Option<String>,
    /// Random places
    #[arg(long)]
    random: bool,
    /// Write instead of read
    #[arg(short, long)]
    write: bool,
    /// The byte that writes are filled with
    #[arg(long, default_value_t = 0)]
    pattern: u8,
    /// Flush after so many requests
    #[arg(long)]
    flush_interval: Option<u64>,
    /// Requests go on while a flush is under way
    #[arg(long)]
    no_drain: bool,
    /// Cache mode
    #[arg(short = 't', long)]
    cache: Option<String>,
    /// How requests reach the kernel (accepted)
    #[arg(short = 'i', long)]
    aio: Option<String>,
    /// Kernel AIO (accepted)
    #[arg(short = 'n')]
    native: bool,
    #[arg(short, long)]
    quiet: bool,
    file: String,
}

pub fn bench(args: BenchArgs, persona: Persona) -> Outcome {
    let named =
        args.opening.named(&args.file, args.format.as_deref(), args.cache.as_deref(), persona)?;
    let image: Image = if args.write { named.write(persona)? } else { named.read()? };
    let len = parse_size(&args.buffer_size)?;
    let step = args.step_size.as_deref().map(parse_size).transpose()?.unwrap_or(len);
    let start = parse_size(&args.offset)?;
    if len == 0 || len > image.size() || len > 64 << 20 {
        return Err(Failure::new("the size of a request has to be within the disk and 64M"));
    }
    if !args.quiet {
        println!(
            "Sending {} {} requests, {len} bytes each, {} in parallel (starting at offset {start}, step size {step})",
            args.count,
            if args.write { "write" } else { "read" },
            args.depth
        );
    }
    let mut buf = vec![args.pattern; len as usize];
    let places = image.size() - len + 1;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let begin = Instant::now();
    let mut at = start % places;
    for done in 1..=args.count {
        if args.random {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            at = random % (image.size() / len) * len;
        }
        if args.write {
            image.write(at, &buf)?;
        } else {
            image.read(at, &mut buf)?;
        }
        if args.flush_interval.is_some_and(|every| every > 0 && done % every == 0) {
            image.flush()?;
        }
        at = (at + step) % places;
    }
    let elapsed = begin.elapsed();
    image.close()?;
    println!("Run completed in {:.3} seconds.", elapsed.as_secs_f64());
    Ok(0)
}
