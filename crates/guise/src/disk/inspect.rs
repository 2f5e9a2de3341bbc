//! `info`, `check`, `compare`, `map`, `measure`.

use std::path::Path;

use clap::{Args, ValueEnum};
use guise_disk::format::{CheckReport, FormatKind, Repair};
use guise_disk::graph::{Image, Node};
use guise_disk::ops::{self, Comparison, ImageInfo, MapEntry, SnapshotEntry, parse_size};
use serde::Serialize;

use super::Persona;
use super::common::{Failure, Opening, Outcome, all_options, kind};
use super::output::{Meter, human, print_details, print_json};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Human,
    Json,
}

#[derive(Args)]
pub struct InfoArgs {
    #[command(flatten)]
    opening: Opening,
    /// Format of the image; found out if not given
    #[arg(short = 'f', long)]
    format: Option<String>,
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
    /// Also the images below
    #[arg(long)]
    backing_chain: bool,
    /// Cache mode
    #[arg(short = 't', long)]
    cache: Option<String>,
    file: String,
}

pub fn info(args: InfoArgs, persona: Persona) -> Outcome {
    let named =
        args.opening.named(&args.file, args.format.as_deref(), args.cache.as_deref(), persona)?;
    let mut all = vec![ops::info(Path::new(&named.path), &named.options)?];
    if args.backing_chain {
        let image = named.read()?;
        let mut layer = image.backing().cloned();
        while let Some(below) = layer {
            let mut options = named.options.clone();
            options.format = Some(below.kind());
            all.push(ops::info(below.path(), &options)?);
            layer = below.backing().cloned();
        }
    }
    match args.output {
        Output::Json if args.backing_chain => print_json(&all),
        Output::Json => all.iter().for_each(print_json),
        Output::Human => {
            for (index, info) in all.iter().enumerate() {
                if index > 0 {
                    println!();
                }
                print_info(info);
            }
        }
    }
    Ok(0)
}

fn print_info(info: &ImageInfo) {
    println!("image: {}", info.filename);
    println!("file format: {}", info.format);
    println!("virtual size: {} ({} bytes)", human(info.virtual_size), info.virtual_size);
    println!("disk size: {}", human(info.actual_size));
    if info.encrypted == Some(true) {
        println!("encrypted: yes");
    }
    if let Some(size) = info.cluster_size {
        println!("cluster_size: {size}");
    }
    if info.dirty_flag {
        println!("cleanly shut down: no");
    }
    if let Some(name) = &info.backing_filename {
        match info.full_backing_filename.as_ref().filter(|full| *full != name) {
            Some(full) => println!("backing file: {name} (actual path: {full})"),
            None => println!("backing file: {name}"),
        }
        if let Some(format) = &info.backing_filename_format {
            println!("backing file format: {format}");
        }
    }
    if !info.snapshots.is_empty() {
        print_snapshots(&info.snapshots);
    }
    if let Some(specific) = &info.format_specific {
        println!("Format specific information:");
        print_details(&specific.data, 1);
    }
}

/// The table of snapshots.
pub fn print_snapshots(snapshots: &[SnapshotEntry]) {
    println!("Snapshot list:");
    println!(
        "{:<10}{:<17}{:>8}{:>20}{:>13}{:>11}",
        "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT"
    );
    for snapshot in snapshots {
        let clock = snapshot.vm_clock_sec;
        let clock = format!(
            "{:02}:{:02}:{:02}.{:03}",
            clock / 3600,
            clock / 60 % 60,
            clock % 60,
            snapshot.vm_clock_nsec / 1_000_000
        );
        let icount = snapshot.icount.map(|count| count.to_string()).unwrap_or_default();
        println!(
            "{:<9} {:<16} {:>8}{:>20}{:>13}{:>11}",
            snapshot.id,
            snapshot.name,
            human(snapshot.vm_state_size),
            super::output::date(i64::from(snapshot.date_sec)),
            clock,
            icount
        );
    }
}

#[derive(Args)]
pub struct CheckArgs {
    #[command(flatten)]
    opening: Opening,
    #[arg(short = 'f', long)]
    format: Option<String>,
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
    /// Repair: leaks (safe) or all
    #[arg(short, long, value_name = "WHAT")]
    repair: Option<String>,
    /// Cache mode
    #[arg(short = 'T', long)]
    cache: Option<String>,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    file: String,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct CheckOutput {
    #[serde(skip_serializing_if = "Option::is_none")]
    image_end_offset: Option<u64>,
    #[serde(skip_serializing_if = "is_zero")]
    total_clusters: u64,
    check_errors: u64,
    #[serde(skip_serializing_if = "is_zero")]
    allocated_clusters: u64,
    #[serde(skip_serializing_if = "is_zero")]
    compressed_clusters: u64,
    #[serde(skip_serializing_if = "is_zero")]
    fragmented_clusters: u64,
    #[serde(skip_serializing_if = "is_zero")]
    corruptions: u64,
    #[serde(skip_serializing_if = "is_zero")]
    leaks: u64,
    #[serde(skip_serializing_if = "is_zero")]
    corruptions_fixed: u64,
    #[serde(skip_serializing_if = "is_zero")]
    leaks_fixed: u64,
    filename: String,
    format: &'static str,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

pub fn check(args: CheckArgs, persona: Persona) -> Outcome {
    let named =
        args.opening.named(&args.file, args.format.as_deref(), args.cache.as_deref(), persona)?;
    let repair = match args.repair.as_deref() {
        None => Repair::Nothing,
        Some("leaks") => Repair::Leaks,
        Some("all") => Repair::All,
        Some(other) => {
            return Err(Failure::new(format!("--repair takes leaks or all, not '{other}'")));
        }
    };
    let set = |options: &mut guise_disk::graph::OpenOptions| {
        options.for_repair = true;
        options.without_contents = true;
        options.backing = guise_disk::graph::BackingPolicy::Ignore;
        if named.options.backing != guise_disk::graph::BackingPolicy::SameDirectory {
            options.backing = named.options.backing.clone();
        }
    };
    let image = if repair == Repair::Nothing {
        let mut named = named.options.clone();
        named.without_contents = true;
        Image::open(Path::new(&args.file), &named)?
    } else {
        named.write_with(persona, set)?
    };
    let report = match image.format().check(repair) {
        Ok(report) => report,
        Err(guise_disk::Error::NoSuchOperation { what: "checks", .. }) => {
            return Err(Failure::new("This image format does not support checks").with_code(63));
        }
        Err(error @ guise_disk::Error::NoSuchOperation { .. }) => {
            return Err(Failure::from(error).with_code(63));
        }
        Err(error) => return Err(error.into()),
    };
    image.close()?;
    let (corruptions, leaks) = if repair == Repair::Nothing {
        (report.corruptions, report.leaks)
    } else {
        (
            report.corruptions.saturating_sub(report.corruptions_fixed),
            report.leaks.saturating_sub(report.leaks_fixed),
        )
    };
    match args.output {
        Output::Json => print_json(&CheckOutput {
            image_end_offset: report.image_end,
            total_clusters: report.total_clusters,
            check_errors: 0,
            allocated_clusters: report.allocated_clusters,
            compressed_clusters: report.compressed_clusters,
            fragmented_clusters: report.fragmented_clusters,
            corruptions,
            leaks,
            corruptions_fixed: report.corruptions_fixed,
            leaks_fixed: report.leaks_fixed,
            filename: args.file.clone(),
            format: image.kind().qemu_name(),
        }),
        Output::Human if !args.quiet => print_report(&report, corruptions, leaks),
        Output::Human => {}
    }
    Ok(if corruptions > 0 {
        2
    } else if leaks > 0 {
        3
    } else {
        0
    })
}

fn print_report(report: &CheckReport, corruptions: u64, leaks: u64) {
    for finding in &report.findings {
        println!("{finding}");
    }
    if report.corruptions_fixed + report.leaks_fixed > 0 {
        println!(
            "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} corruptions\n\nDouble checking the fixed image now...",
            report.leaks_fixed, report.corruptions_fixed
        );
    }
    if corruptions + leaks == 0 {
        println!("No errors were found on the image.");
    }
    if corruptions > 0 {
        println!(
            "\n{corruptions} errors were found on the image.\nData may be corrupted, or further writes to the image may corrupt it."
        );
    }
    if leaks > 0 {
        println!(
            "\n{leaks} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data."
        );
    }
    if report.total_clusters > 0 && report.allocated_clusters > 0 {
        let percent = |part: u64, of: u64| part as f64 * 100.0 / of as f64;
        println!(
            "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
            report.allocated_clusters,
            report.total_clusters,
            percent(report.allocated_clusters, report.total_clusters),
            percent(report.fragmented_clusters, report.allocated_clusters),
            percent(report.compressed_clusters, report.allocated_clusters)
        );
    }
    if let Some(end) = report.image_end.filter(|&end| end > 0) {
        println!("Image end offset: {end}");
    }
}

#[derive(Args)]
pub struct CompareArgs {
    #[command(flatten)]
    opening: Opening,
    /// Format of the first image
    #[arg(short = 'f', long)]
    format: Option<String>,
    /// Format of the second image
    #[arg(short = 'F', long)]
    second_format: Option<String>,
    /// Cache mode
    #[arg(short = 'T', long)]
    cache: Option<String>,
    /// Also compare sizes and what is allocated
    #[arg(short, long)]
    strict: bool,
    #[arg(short, long)]
    progress: bool,
    #[arg(short, long)]
    quiet: bool,
    first: String,
    second: String,
}

pub fn compare(args: CompareArgs, persona: Persona) -> Outcome {
    let open = |name: &str, format: &Option<String>| -> Result<Image, Failure> {
        args.opening.named(name, format.as_deref(), args.cache.as_deref(), persona)?.read()
    };
    let first = open(&args.first, &args.format).map_err(|e| e.with_code(2))?;
    let second = open(&args.second, &args.second_format).map_err(|e| e.with_code(2))?;
    let meter = Meter::new(args.progress);
    let outcome = ops::compare(&first, &second, args.strict, &meter)
        .map_err(|e| Failure::from(e).with_code(2))?;
    meter.end();
    let (text, code) = match outcome {
        Comparison::Equal => ("Images are identical.".to_owned(), 0),
        Comparison::EqualButForSize => {
            ("Warning: Image size mismatch!\nImages are identical.".to_owned(), 0)
        }
        Comparison::Differ(at) => (format!("Content mismatch at offset {at}!"), 1),
        Comparison::SizesDiffer => ("Strict mode: Image size mismatch!".to_owned(), 1),
        Comparison::StatusDiffers(at) => {
            (format!("Strict mode: Offset {at} block status mismatch!"), 1)
        }
    };
    if !args.quiet {
        println!("{text}");
    }
    Ok(code)
}

#[derive(Args)]
pub struct MapArgs {
    #[command(flatten)]
    opening: Opening,
    #[arg(short = 'f', long)]
    format: Option<String>,
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
    /// First byte to look at
    #[arg(short, long)]
    start_offset: Option<String>,
    /// How much to look at
    #[arg(short = 'l', long)]
    max_length: Option<String>,
    file: String,
}

pub fn map(args: MapArgs, persona: Persona) -> Outcome {
    let image = args.opening.named(&args.file, args.format.as_deref(), None, persona)?.read()?;
    let start = args.start_offset.as_deref().map(parse_size).transpose()?.unwrap_or(0);
    let len = args.max_length.as_deref().map(parse_size).transpose()?.unwrap_or(u64::MAX);
    if args.output == Output::Human {
        println!("{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to");
    }
    let mut first = true;
    let mut opaque = false;
    ops::map(&image, start, len, |entry| {
        match args.output {
            Output::Json => {
                print!("{}{}", if first { "[" } else { ",\n" }, json_entry(&entry));
                first = false;
            }
            Output::Human => {
                if entry.data && !entry.zero {
                    match (entry.offset, &entry.file) {
                        (Some(offset), Some(file)) => println!(
                            "{:<16}{:<16}{:<16}{file}",
                            hex(entry.start),
                            hex(entry.length),
                            hex(offset)
                        ),
                        _ => opaque = true,
                    }
                }
            }
        }
        Ok(())
    })?;
    if args.output == Output::Json {
        println!("{}", if first { "[]" } else { "]" });
    }
    if opaque {
        return Err(Failure::new("File contains external, encrypted or compressed clusters."));
    }
    Ok(0)
}

/// As C prints it: zero has no prefix.
fn hex(number: u64) -> String {
    if number == 0 { "0".to_owned() } else { format!("{number:#x}") }
}

/// One line of JSON, with the spaces that scripts have seen so far.
fn json_entry(entry: &MapEntry) -> String {
    let mut text = format!(
        "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \"data\": {}, \"compressed\": {}",
        entry.start,
        entry.length,
        entry.depth,
        entry.present,
        entry.zero,
        entry.data,
        entry.compressed
    );
    if let Some(offset) = entry.offset {
        text += &format!(", \"offset\": {offset}");
    }
    text + "}"
}

#[derive(Args)]
pub struct MeasureArgs {
    #[command(flatten)]
    opening: Opening,
    /// Format of the source
    #[arg(short = 'f', long)]
    format: Option<String>,
    /// Format of the image to be
    #[arg(short = 'O', long, default_value = "raw")]
    target_format: String,
    /// Options of the image to be
    #[arg(short = 'o', long = "options")]
    options: Vec<String>,
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
    /// For an empty disk of this size
    #[arg(long)]
    size: Option<String>,
    /// Read the source as this internal snapshot has it
    #[arg(short = 'l', long)]
    snapshot: Option<String>,
    file: Option<String>,
}

pub fn measure(args: MeasureArgs, persona: Persona) -> Outcome {
    let kind: FormatKind = kind(&args.target_format)?;
    let options = all_options(&args.options)?;
    let result = match (&args.file, &args.size) {
        (Some(file), None) => {
            let mut named = args.opening.named(file, args.format.as_deref(), None, persona)?;
            named.options.snapshot.clone_from(&args.snapshot);
            let image = named.read()?;
            let choices = ops::qcow2_options(&options, image.size())?;
            let mut result = ops::measure(&image, kind, &choices)?;
            if let Some(qcow2) = image.format().as_qcow2().filter(|_| kind == FormatKind::Qcow2)
                && !qcow2.bitmaps()?.is_empty()
            {
                result.bitmaps = Some(ops::measure_bitmaps(qcow2, choices.cluster_size)?);
            }
            result
        }
        (None, Some(size)) => {
            let choices = ops::qcow2_options(&options, parse_size(size)?)?;
            ops::measure_size(kind, &choices)?
        }
        _ => return Err(Failure::new("Either --size N or one filename must be specified.")),
    };
    match args.output {
        Output::Json => print_json(&result),
        Output::Human => {
            println!("required size: {}", result.required);
            println!("fully allocated size: {}", result.fully_allocated);
            if let Some(bitmaps) = result.bitmaps {
                println!("bitmaps size: {bitmaps}");
            }
        }
    }
    Ok(0)
}
