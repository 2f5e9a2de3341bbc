//! `convert` and `dd`.

use std::path::Path;

use clap::Args;
use guise_disk::format::BackingReference;
use guise_disk::graph::{Image, Join, Node, OpenOptions, Window};
use guise_disk::ops::{self, CopyOptions, CreateRequest, parse_size};

use super::Persona;
use super::common::{Failure, Opening, Outcome, all_options, asks_for_help, kind};
use super::output::Meter;

#[derive(Args)]
pub struct ConvertArgs {
    #[command(flatten)]
    opening: Opening,
    /// Format of the source; found out if not given
    #[arg(short = 'f', long)]
    source_format: Option<String>,
    /// Format of the new image
    #[arg(short = 'O', long, default_value = "raw")]
    format: String,
    /// Options of the new image: name=value,…; `help` lists them
    #[arg(short = 'o', long = "options", value_name = "OPTIONS")]
    options: Vec<String>,
    /// Pack clusters, on all processors
    #[arg(short, long)]
    compress: bool,
    /// Backing file of the new image: what is there is not copied
    #[arg(short = 'B', long)]
    backing: Option<String>,
    /// Format of that backing file
    #[arg(short = 'F', long)]
    backing_format: Option<String>,
    /// Write into an image that is there
    #[arg(short = 'n', long)]
    no_create: bool,
    /// The target reads as zeroes already (with -n)
    #[arg(long)]
    target_is_zero: bool,
    /// The target's name is a list of options
    #[arg(long)]
    target_image_opts: bool,
    /// Cache mode of the target
    #[arg(short = 't', long, default_value = "unsafe")]
    cache: String,
    /// Cache mode of the source
    #[arg(short = 'T', long)]
    source_cache: Option<String>,
    /// Smallest stretch of zeroes that is left out; 0 writes all
    #[arg(short = 'S', long, value_name = "SIZE")]
    sparse: Option<String>,
    /// Read the source as this internal snapshot has it
    #[arg(short = 'l', long)]
    snapshot: Option<String>,
    /// Show progress
    #[arg(short, long)]
    progress: bool,
    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
    /// Processors to pack with (default: all)
    #[arg(short = 'm', long)]
    threads: Option<usize>,
    /// Write out of order (accepted; order costs nothing here)
    #[arg(short = 'W')]
    out_of_order: bool,
    /// Copy inside the kernel where that is possible
    #[arg(short = 'C')]
    copy_offload: bool,
    /// Bytes per second at most
    #[arg(short = 'r', long)]
    rate_limit: Option<String>,
    /// Go on over what cannot be read
    #[arg(long)]
    salvage: bool,
    /// Take dirty bitmaps along
    #[arg(long)]
    bitmaps: bool,
    /// With --bitmaps: leave out inconsistent ones
    #[arg(long)]
    skip_broken_bitmaps: bool,
    /// Sources, then the target
    files: Vec<String>,
}

pub fn convert(mut args: ConvertArgs, persona: Persona) -> Outcome {
    let target_kind = kind(&args.format)?;
    if asks_for_help(&args.options) {
        println!("Supported {} options:", target_kind.qemu_name());
        super::create::print_options(ops::create_options(target_kind));
        return Ok(0);
    }
    let target_name = args.files.pop().filter(|_| !args.files.is_empty());
    let Some(target_name) = target_name else {
        return Err(Failure::new("Must specify image file name"));
    };
    let mut sources = Vec::new();
    for name in &args.files {
        let mut named = args.opening.named(
            name,
            args.source_format.as_deref(),
            args.source_cache.as_deref(),
            persona,
        )?;
        named.options.snapshot = args.snapshot.as_deref().map(snapshot_name);
        sources.push(named.read()?);
    }
    let disk = Join::new(&sources);
    let size = disk.size();
    let backing = args
        .backing
        .clone()
        .map(|name| BackingReference { name, format: args.backing_format.clone() });
    let target_opening = Opening { image_opts: args.target_image_opts, ..args.opening.clone() };
    let format = Some(args.format.as_str()).filter(|_| !args.target_image_opts);
    let target = target_opening.named(&target_name, format, Some(&args.cache), persona)?;
    if !args.no_create {
        let mut request = CreateRequest::new(&target.path, target_kind, Some(size));
        request.options = all_options(&args.options)?;
        if let Some(asked) = request.options.remove("size") {
            request.size = Some(parse_size(&asked)?);
        }
        request.backing = backing.clone();
        request.open =
            OpenOptions { backing: args.opening.policy(persona), ..OpenOptions::default() };
        request.passphrases = args.opening.passphrases()?;
        request.unsafe_cache = args.cache == "unsafe";
        ops::create(&request)?;
    }
    let image = target.write(persona)?;
    if args.no_create && image.size() < size {
        return Err(Failure::new(format!(
            "'{target_name}' has {} bytes, less than the source's {size}",
            image.size()
        )));
    }
    let new_and_zero = !args.no_create && image.format().starts_zeroed() && backing.is_none();
    let options = CopyOptions {
        compress: args.compress || image.format().always_packed(),
        sparse: match &args.sparse {
            Some(text) => parse_size(text)?,
            None => 4096,
        },
        offload: args.copy_offload && args.sparse.is_none(),
        target_is_zero: args.target_is_zero || new_and_zero,
        shared_backing: backing.is_some() && sources.len() == 1,
        threads: args.threads.unwrap_or(0),
        salvage: args.salvage,
        rate_limit: args.rate_limit.as_deref().map(parse_size).transpose()?.unwrap_or(0),
    };
    if args.copy_offload && options.compress {
        return Err(Failure::new("-C and -c do not go together: the kernel does not compress"));
    }
    let meter = Meter::new(args.progress && !args.quiet);
    ops::copy(&disk, &image, &options, &meter)?;
    if args.bitmaps {
        let [source] = &sources[..] else {
            return Err(Failure::new("--bitmaps goes with one source only"));
        };
        ops::copy_bitmaps(source, &image, args.skip_broken_bitmaps)?;
    }
    image.close()?;
    meter.end();
    Ok(0)
}

/// `snapshot.id=…` and `snapshot.name=…` as qemu-img takes them, or a name.
fn snapshot_name(text: &str) -> String {
    let plain = text.strip_prefix("snapshot.name=").or(text.strip_prefix("snapshot.id="));
    plain.unwrap_or(text).to_owned()
}

#[derive(Args)]
pub struct DdArgs {
    #[command(flatten)]
    opening: Opening,
    /// Format of the input
    #[arg(short = 'f', long)]
    source_format: Option<String>,
    /// Format of the output
    #[arg(short = 'O', long, default_value = "raw")]
    format: String,
    /// if=FILE of=FILE [bs=SIZE] [count=BLOCKS] [skip=BLOCKS]
    #[arg(required = true)]
    operands: Vec<String>,
}

pub fn dd(args: DdArgs, persona: Persona) -> Outcome {
    let (mut input, mut output) = (None, None);
    let (mut unit, mut count, mut skip) = (512, None, 0);
    for operand in &args.operands {
        match operand.split_once('=') {
            Some(("if", name)) => input = Some(name),
            Some(("of", name)) => output = Some(name),
            Some(("bs", size)) => unit = parse_size(size)?,
            Some(("count", number)) => count = Some(parse_size(number)?),
            Some(("skip", number)) => skip = parse_size(number)?,
            _ => return Err(Failure::new(format!("unrecognized operand '{operand}'"))),
        }
    }
    let (Some(input), Some(output)) = (input, output) else {
        return Err(Failure::new("Must specify both input and output files"));
    };
    if !(1..=i32::MAX as u64).contains(&unit) {
        return Err(Failure::new("Invalid bs specified. Must be between 1 and 2147483647."));
    }
    let named = args.opening.named(input, args.source_format.as_deref(), None, persona)?;
    let source = named.read()?;
    let start = skip.saturating_mul(unit);
    if start > source.size() {
        let program = if persona == Persona::QemuImg { "qemu-img" } else { "guise disk" };
        eprintln!("{program}: {input}: cannot skip to specified offset");
    }
    let start = start.min(source.size());
    let rest = source.size() - start;
    let len = count.map_or(rest, |count: u64| rest.min(count.saturating_mul(unit)));
    let part = Window::new(&source, start, len);
    let request = CreateRequest::new(output, kind(&args.format)?, Some(len));
    ops::create(&request)?;
    let target = Image::open(Path::new(output), &OpenOptions::write(kind(&args.format)?))?;
    let options = CopyOptions {
        target_is_zero: target.format().starts_zeroed(),
        compress: target.format().always_packed(),
        ..CopyOptions::default()
    };
    ops::copy(&part, &target, &options, &Meter::new(false))?;
    target.close()?;
    Ok(0)
}
