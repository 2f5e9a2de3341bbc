//! `bench`.

use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use guise_disk::device::{BlockDevice, Buffer, Request};
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
    let depth = args.depth.clamp(1, 4096);
    if (depth as u64).saturating_mul(len) > 1 << 30 {
        return Err(Failure::new("requests under way take more than 1G: lower --depth"));
    }
    let device = BlockDevice::over(Arc::new(image));
    let mut places = Places::new(&args, start, step, len, device.size());
    let mut queue = device.queue(depth as u32);
    let mut spare: Vec<Buffer> =
        (0..depth).map(|_| Buffer::Owned(vec![args.pattern; len as usize])).collect();
    let (mut sent, mut flushed) = (0, 0);
    let begin = Instant::now();
    loop {
        let flush_at = args.flush_interval.filter(|&every| every > 0).map(|every| flushed + every);
        while sent < args.count && flush_at.is_none_or(|at| sent < at) {
            let Some(buffer) = spare.pop() else { break };
            let offset = places.next();
            let request = match args.write {
                true => Request::Write { offset, buffer },
                false => Request::Read { offset, buffer },
            };
            queue.push(sent, request);
            sent += 1;
        }
        if flush_at == Some(sent) && (args.no_drain || spare.len() == depth) {
            queue.push(sent, Request::Flush);
            flushed = sent;
        }
        queue.submit()?;
        if !queue.wait()? {
            break;
        }
        while let Some(done) = queue.take() {
            done.result?;
            spare.extend(done.buffer);
        }
    }
    let elapsed = begin.elapsed();
    device.close()?;
    println!("Run completed in {:.3} seconds.", elapsed.as_secs_f64());
    Ok(0)
}

/// Where the requests go: one after the other, or anywhere.
struct Places {
    random: Option<u64>,
    at: u64,
    step: u64,
    len: u64,
    size: u64,
}

impl Places {
    fn new(args: &BenchArgs, start: u64, step: u64, len: u64, size: u64) -> Self {
        let random = args.random.then_some(0x9e37_79b9_7f4a_7c15);
        Self { random, at: start % (size - len + 1), step, len, size }
    }

    fn next(&mut self) -> u64 {
        match &mut self.random {
            Some(random) => {
                *random ^= *random << 13;
                *random ^= *random >> 7;
                *random ^= *random << 17;
                *random % (self.size / self.len) * self.len
            }
            None => {
                let at = self.at;
                self.at = (at + self.step) % (self.size - self.len + 1);
                at
            }
        }
    }
}
