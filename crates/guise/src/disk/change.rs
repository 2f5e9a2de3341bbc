//! `resize`, `snapshot`, `rebase`, `commit`, `amend`, `bitmap`.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{ArgGroup, Args};
use guise_disk::format::{BackingReference, Preallocation};
use guise_disk::formats::qcow2::{Amendment, Qcow2};
use guise_disk::graph::{Image, Node, OpenOptions};
use guise_disk::ops::{self, SnapshotEntry, parse_size};

use super::Persona;
use super::common::{Failure, Opening, Outcome, all_options, asks_for_help};
use super::output::Meter;

fn qcow2<'a>(image: &'a Image, what: &str) -> Result<&'a Qcow2, Failure> {
    image
        .format()
        .as_qcow2()
        .ok_or_else(|| Failure::new(format!("{} images have no {what}", image.kind().name())))
}

#[derive(Args)]
pub struct ResizeArgs {
    #[command(flatten)]
    opening: Opening,
    /// Format of the image
    #[arg(short = 'f', long)]
    format: Option<String>,
    /// How new space is taken: off, metadata, falloc, full
    #[arg(long, default_value = "off")]
    preallocation: String,
    /// Data behind the new end is given up
    #[arg(long)]
    shrink: bool,
    #[arg(short, long)]
    quiet: bool,
    file: String,
    /// New size, or a change: +1G, -512M
    #[arg(allow_hyphen_values = true)]
    size: String,
}

pub fn resize(args: ResizeArgs, persona: Persona) -> Outcome {
    let named = args.opening.named(&args.file, args.format.as_deref(), None, persona)?;
    let preallocation = Preallocation::from_name(&args.preallocation).ok_or_else(|| {
        Failure::new(format!("Invalid preallocation mode '{}'", args.preallocation))
    })?;
    let image = named.write(persona)?;
    let old = image.size();
    let size = if let Some(more) = args.size.strip_prefix('+') {
        old.saturating_add(parse_size(more)?)
    } else if let Some(less) = args.size.strip_prefix('-') {
        let less = parse_size(less)?;
        old.checked_sub(less).ok_or_else(|| Failure::new("New image size must be positive"))?
    } else {
        parse_size(&args.size)?
    };
    if size < old && !args.shrink {
        return Err(Failure::new(
            "Use the --shrink option to perform a shrink operation: data behind the new end are lost",
        ));
    }
    image.resize(size, preallocation)?;
    image.close()?;
    if !args.quiet {
        println!("Image resized.");
    }
    Ok(0)
}

#[derive(Args)]
#[command(group(ArgGroup::new("action").args(["list", "create", "apply", "delete"])))]
pub struct SnapshotArgs {
    #[command(flatten)]
    opening: Opening,
    /// Format of the image
    #[arg(short = 'f', long)]
    format: Option<String>,
    /// List snapshots (the default)
    #[arg(short, long)]
    list: bool,
    /// Make one
    #[arg(short, long, value_name = "NAME")]
    create: Option<String>,
    /// Go back to one
    #[arg(short, long, value_name = "NAME")]
    apply: Option<String>,
    /// Delete one
    #[arg(short, long, value_name = "NAME")]
    delete: Option<String>,
    #[arg(short, long)]
    quiet: bool,
    file: String,
}

pub fn snapshot(args: SnapshotArgs, persona: Persona) -> Outcome {
    let named = args.opening.named(&args.file, args.format.as_deref(), None, persona)?;
    let changes = args.create.is_some() || args.apply.is_some() || args.delete.is_some();
    if !changes {
        let mut options = named.options.clone();
        options.without_contents = true;
        let image = Image::open(Path::new(&named.path), &options)?;
        let list: Vec<SnapshotEntry> = match image.format().as_qcow2() {
            Some(qcow2) => qcow2.snapshots().iter().map(SnapshotEntry::from).collect(),
            None => Vec::new(),
        };
        if !list.is_empty() {
            super::inspect::print_snapshots(&list);
        }
        return Ok(0);
    }
    let image = named.write_with(persona, |options| options.without_contents = true)?;
    let disk = qcow2(&image, "snapshots")?;
    let file = &args.file;
    let tell = |what: &'static str, name: String| {
        move |error: guise_disk::Error| {
            Failure::new(format!("Could not {what} snapshot '{name}' of '{file}': {error}"))
        }
    };
    if let Some(name) = args.create {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let date = (now.as_secs() as u32, now.subsec_nanos());
        disk.create_snapshot(&name, date).map_err(tell("create", name))?;
    } else if let Some(name) = args.apply {
        disk.apply_snapshot(&name).map_err(tell("apply", name))?;
    } else if let Some(name) = args.delete {
        disk.delete_snapshot(&name).map_err(tell("delete", name))?;
    }
    image.close()?;
    Ok(0)
}

#[derive(Args)]
pub struct RebaseArgs {
    #[command(flatten)]
    opening: Opening,
    /// Format of the image
    #[arg(short = 'f', long)]
    format: Option<String>,
    /// New backing file; none makes the image independent
    #[arg(short, long)]
    backing: Option<String>,
    /// Its format
    #[arg(short = 'F', long)]
    backing_format: Option<String>,
    /// Only change the reference: contents change if the files differ
    #[arg(short = 'u', long)]
    unsafe_mode: bool,
    /// Cache mode of the image
    #[arg(short = 't', long)]
    cache: Option<String>,
    /// Cache mode of the backing files
    #[arg(short = 'T', long)]
    source_cache: Option<String>,
    #[arg(short, long)]
    progress: bool,
    #[arg(short, long)]
    quiet: bool,
    file: String,
}

pub fn rebase(args: RebaseArgs, persona: Persona) -> Outcome {
    let named =
        args.opening.named(&args.file, args.format.as_deref(), args.cache.as_deref(), persona)?;
    let name = args.backing.clone().filter(|name| !name.is_empty());
    let reference = name.map(|name| BackingReference { name, format: args.backing_format.clone() });
    if args.unsafe_mode {
        let image = named.write_with(persona, |options| {
            options.backing = guise_disk::graph::BackingPolicy::Ignore;
            options.without_contents = true;
        })?;
        let change = Amendment { backing: Some(reference), ..Amendment::default() };
        qcow2(&image, "backing files that can be changed")?.amend(&change, &image.below())?;
        image.close()?;
        return Ok(0);
    }
    let image = named.write(persona)?;
    let new = match &reference {
        None => None,
        Some(reference) => {
            let dir = Path::new(&named.path).parent().unwrap_or(Path::new(""));
            let format = args.backing_format.as_deref().map(super::common::kind).transpose()?;
            let options = OpenOptions { format, write: false, ..named.options.clone() };
            Some(Image::open(&dir.join(&reference.name), &options)?)
        }
    };
    let meter = Meter::new(args.progress);
    ops::rebase(&image, new.as_ref(), reference, &meter)?;
    image.close()?;
    meter.end();
    Ok(0)
}

#[derive(Args)]
pub struct CommitArgs {
    #[command(flatten)]
    opening: Opening,
    /// Format of the image
    #[arg(short = 'f', long)]
    format: Option<String>,
    /// Cache mode
    #[arg(short = 't', long)]
    cache: Option<String>,
    /// Commit down to this image of the chain
    #[arg(short, long)]
    base: Option<String>,
    /// Leave the image as it is afterwards
    #[arg(short = 'd', long)]
    keep: bool,
    /// Bytes per second at most
    #[arg(short = 'r', long)]
    rate_limit: Option<String>,
    #[arg(short, long)]
    progress: bool,
    #[arg(short, long)]
    quiet: bool,
    file: String,
}

pub fn commit(args: CommitArgs, persona: Persona) -> Outcome {
    let named =
        args.opening.named(&args.file, args.format.as_deref(), args.cache.as_deref(), persona)?;
    let keep = args.keep || args.base.is_some();
    // The base is opened once more, for writing: the lock of the one that
    // the chain holds for reading would be in the way.
    let share = |options: &mut OpenOptions| options.share = true;
    let top = if keep {
        let mut options = named.options.clone();
        share(&mut options);
        Image::open(Path::new(&named.path), &options)?
    } else {
        named.write_with(persona, share)?
    };
    let mut depth = 1;
    if let Some(base) = &args.base {
        let same = |image: &Image| image.path() == Path::new(base) || image.path().ends_with(base);
        depth = (1..top.depth())
            .find(|&depth| top.layer(depth).is_some_and(same))
            .ok_or_else(|| Failure::new(format!("Did not find '{base}' in the backing chain")))?;
    }
    let Some(base) = top.layer(depth) else {
        return Err(Failure::new("Image does not have a backing file"));
    };
    let open = OpenOptions {
        format: Some(base.kind()),
        write: true,
        snapshot: None,
        ..named.options.clone()
    };
    let target = Image::open(base.path(), &open)?;
    let meter = Meter::new(args.progress);
    let rate_limit = args.rate_limit.as_deref().map(parse_size).transpose()?.unwrap_or(0);
    let options = ops::CommitOptions { depth, empty: !keep, rate_limit };
    ops::commit(&top, &target, &options, &meter)?;
    target.close()?;
    top.close()?;
    meter.end();
    if !args.quiet {
        println!("Image committed.");
    }
    Ok(0)
}

#[derive(Args)]
pub struct AmendArgs {
    #[command(flatten)]
    opening: Opening,
    /// Format of the image
    #[arg(short = 'f', long)]
    format: Option<String>,
    /// What to change: name=value,…; `help` lists what can be
    #[arg(short = 'o', long = "options", required = true)]
    options: Vec<String>,
    /// Cache mode
    #[arg(short = 't', long)]
    cache: Option<String>,
    /// Also options that may make data inaccessible
    #[arg(long)]
    force: bool,
    #[arg(short, long)]
    progress: bool,
    #[arg(short, long)]
    quiet: bool,
    file: Option<String>,
}

pub fn amend(args: AmendArgs, persona: Persona) -> Outcome {
    if asks_for_help(&args.options) {
        let kind = super::common::kind(args.format.as_deref().unwrap_or("raw"))?;
        if ops::amend_options(kind).is_empty() {
            let text = format!("{} images have no options that can be amended", kind.name());
            return Err(Failure::new(text));
        }
        println!("Amend options for '{}':", kind.qemu_name());
        super::create::print_options(ops::amend_options(kind));
        return Ok(0);
    }
    let Some(file) = &args.file else {
        return Err(Failure::new("Expecting one image file name"));
    };
    let mut options = all_options(&args.options)?;
    let named = args.opening.named(file, args.format.as_deref(), args.cache.as_deref(), persona)?;
    let image = named.write(persona)?;
    let disk = qcow2(&image, "options to amend")?;
    let mut change = Amendment::default();
    let switch = |name: &str, value: String| match value.as_str() {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(Failure::new(format!("{name} takes on or off, not '{value}'"))),
    };
    change.version = match options.remove("compat").as_deref() {
        None => None,
        Some("v2" | "0.10") => Some(2),
        Some("v3" | "1.1") => Some(3),
        Some(other) => return Err(Failure::new(format!("Unknown compatibility level {other}"))),
    };
    if let Some(value) = options.remove("lazy_refcounts") {
        change.lazy_refcounts = Some(switch("lazy_refcounts", value)?);
    }
    if let Some(value) = options.remove("data_file_raw") {
        change.data_file_raw = Some(switch("data_file_raw", value)?);
    }
    change.data_file = options.remove("data_file");
    if let Some(bits) = options.remove("refcount_bits") {
        let bits = bits.parse().map_err(|_| Failure::new("refcount_bits takes a number"))?;
        change.refcount_bits = Some(bits);
    }
    let format = options.remove("backing_fmt");
    if let Some(name) = options.remove("backing_file") {
        change.backing = Some((!name.is_empty()).then_some(BackingReference { name, format }));
    }
    let size = options.remove("size").as_deref().map(parse_size).transpose()?;
    if let Some(name) = options.keys().next() {
        return Err(Failure::new(format!("Invalid option '{name}' for amending")));
    }
    disk.amend(&change, &image.below())?;
    if let Some(size) = size {
        image.resize(size, Preallocation::Off)?;
    }
    image.close()?;
    Ok(0)
}

#[derive(Args)]
#[command(group(ArgGroup::new("action").required(true).multiple(true)
    .args(["add", "remove", "clear", "enable", "disable", "merge"])))]
pub struct BitmapArgs {
    #[command(flatten)]
    opening: Opening,
    /// Format of the image
    #[arg(short = 'f', long)]
    format: Option<String>,
    /// Make a bitmap
    #[arg(long)]
    add: bool,
    /// Remove it
    #[arg(long)]
    remove: bool,
    /// Forget what it has noted
    #[arg(long)]
    clear: bool,
    /// Start recording
    #[arg(long)]
    enable: bool,
    /// Stop recording
    #[arg(long)]
    disable: bool,
    /// Add what another bitmap has noted
    #[arg(long, value_name = "SOURCE")]
    merge: Vec<String>,
    /// The image with the source of --merge
    #[arg(short = 'b', long)]
    source_file: Option<String>,
    #[arg(short = 'F', long)]
    source_format: Option<String>,
    /// Unit of a new bitmap
    #[arg(short, long)]
    granularity: Option<String>,
    file: String,
    bitmap: String,
}

pub fn bitmap(args: BitmapArgs, persona: Persona) -> Outcome {
    let named = args.opening.named(&args.file, args.format.as_deref(), None, persona)?;
    let image = named.write_with(persona, |options| options.without_contents = true)?;
    let disk = qcow2(&image, "bitmaps")?;
    let name = &args.bitmap;
    if args.add {
        let granularity =
            args.granularity.as_deref().map(parse_size).transpose()?.unwrap_or(64 << 10);
        disk.add_bitmap(name, granularity, !args.disable)?;
    }
    if args.clear {
        disk.clear_bitmap(name)?;
    }
    if args.enable {
        disk.enable_bitmap(name, true)?;
    }
    if args.disable && !args.add {
        disk.enable_bitmap(name, false)?;
    }
    for source in &args.merge {
        match &args.source_file {
            None => disk.merge_bitmap(name, disk, source)?,
            Some(file) => {
                let other = args
                    .opening
                    .named(file, args.source_format.as_deref(), None, persona)?
                    .read()?;
                disk.merge_bitmap(name, qcow2(&other, "bitmaps")?, source)?;
            }
        }
    }
    if args.remove {
        disk.remove_bitmap(name)?;
    }
    image.close()?;
    Ok(0)
}
