//! `create`.

use clap::Args;
use guise_disk::format::{BackingReference, FormatKind};
use guise_disk::graph::OpenOptions;
use guise_disk::ops::{self, CreateRequest, OptionHelp, parse_size};

use super::Persona;
use super::common::{Failure, Opening, Outcome, all_options, asks_for_help, kind};

#[derive(Args)]
pub struct CreateArgs {
    #[command(flatten)]
    opening: Opening,
    /// Format of the new image
    #[arg(short = 'f', long, default_value = "raw")]
    format: String,
    /// Options of the format: name=value,…; `help` lists them
    #[arg(short = 'o', long = "options", value_name = "OPTIONS")]
    options: Vec<String>,
    /// The image below the new one
    #[arg(short = 'b', long)]
    backing: Option<String>,
    /// Format of the image below
    #[arg(short = 'F', long)]
    backing_format: Option<String>,
    /// Do not look whether the image below is there
    #[arg(short = 'u', long)]
    unsafe_backing: bool,
    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
    /// The new file
    file: Option<String>,
    /// Size of the disk: 10G, 512M, …
    size: Option<String>,
}

pub fn create(args: CreateArgs, persona: Persona) -> Outcome {
    let kind = kind(&args.format)?;
    if asks_for_help(&args.options) {
        // With a file's name QEMU's tool tells what the file may have, too: that is all here.
        match args.file {
            Some(_) => println!("Supported options:"),
            None => println!("Supported {} options:", kind.qemu_name()),
        }
        print_options(ops::create_options(kind));
        return Ok(0);
    }
    let Some(file) = args.file else {
        return Err(Failure::new("Expecting image file name"));
    };
    let mut request = CreateRequest::new(&file, kind, None);
    request.options = all_options(&args.options)?;
    request.size = args.size.as_deref().map(parse_size).transpose()?;
    request.trust_backing = args.unsafe_backing;
    request.open = OpenOptions {
        backing: args.opening.policy(persona),
        share: args.opening.force_share,
        ..OpenOptions::default()
    };
    request.passphrases = args.opening.passphrases()?;
    if let Some(format) = &args.backing_format {
        request.options.remove("backing_fmt");
        super::common::kind(format)?;
    }
    let name = args.backing.or_else(|| request.options.remove("backing_file"));
    if let Some(name) = name {
        let format = args.backing_format.or_else(|| request.options.remove("backing_fmt"));
        if format.is_none() {
            return Err(Failure::new(format!(
                "{file}: Backing file specified without backing format: say it with -F"
            )));
        }
        request.backing = Some(BackingReference { name, format });
    }
    let shown = describe(&request);
    let size = ops::create(&request)
        .map_err(|error| Failure::new(format!("{file}: {}", Failure::from(error).text)))?;
    if !args.quiet {
        println!("Formatting '{file}', fmt={}{}", args.format, shown(size));
    }
    Ok(0)
}

/// The line that tells what is made, in the order that QEMU's tools have.
fn describe(request: &CreateRequest) -> impl Fn(u64) -> String + use<> {
    let options = request.options.clone();
    let backing = request.backing.clone();
    let kind = request.kind;
    move |size| {
        let get = |name: &str| options.get(name).map(String::as_str);
        let mut text = String::new();
        if kind == FormatKind::Qcow2 {
            let cluster = get("cluster_size").and_then(|s| parse_size(s).ok()).unwrap_or(65_536);
            text += &format!(
                " cluster_size={cluster} extended_l2={} compression_type={}",
                get("extended_l2").unwrap_or("off"),
                get("compression_type").unwrap_or("zlib")
            );
            for name in ["preallocation", "compat"] {
                if let Some(value) = get(name).filter(|_| name == "preallocation") {
                    text += &format!(" {name}={value}");
                }
            }
        }
        text += &format!(" size={size}");
        if let Some(value) = get("compat") {
            text += &format!(" compat={value}");
        }
        if let Some(backing) = &backing {
            text += &format!(" backing_file={}", backing.name);
            if let Some(format) = &backing.format {
                text += &format!(" backing_fmt={format}");
            }
        }
        if let Some(value) = get("data_file") {
            text += &format!(" data_file={value}");
        }
        if kind == FormatKind::Qcow2 {
            text += &format!(
                " lazy_refcounts={} refcount_bits={}",
                get("lazy_refcounts").unwrap_or("off"),
                get("refcount_bits").unwrap_or("16")
            );
        } else {
            for (name, value) in options.iter().filter(|(name, _)| *name != "size") {
                text += &format!(" {name}={value}");
            }
        }
        text
    }
}

/// A list of options, with what they take.
pub fn print_options(options: &[OptionHelp]) {
    for option in options {
        let named = format!("{}=<{}>", option.name, option.takes.name());
        println!("  {named:<22} - {}", option.text);
    }
}
