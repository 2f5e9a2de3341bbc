//! `guise image build`: an image from a Containerfile.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Args, ValueEnum};
use guise_build::{Build, Network, Output};
use guise_image::{Name, Store};

use super::LimitArgs;
use super::progress::Bars;

#[derive(Args)]
pub struct BuildArgs {
    /// The directory that COPY and ADD read
    context: PathBuf,
    /// The Containerfile [default: Containerfile or Dockerfile in the context]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What to call the image; may be given several times
    #[arg(short, long = "tag", value_name = "NAME")]
    tags: Vec<Name>,
    /// A value for an ARG; without a value, that of the environment
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    arguments: Vec<String>,
    /// Build this stage instead of the last
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Do every step anew
    #[arg(long)]
    no_cache: bool,
    /// Fetch base images even if the store has them
    #[arg(long)]
    pull: bool,
    /// The network that RUN has
    #[arg(long, value_enum, default_value_t)]
    network: BuildNetwork,
    #[command(flatten)]
    limits: LimitArgs,
    /// Print nothing but errors and the image's digest
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum BuildNetwork {
    /// The host's own
    #[default]
    Host,
    /// None at all
    None,
}

/// Builds, and prints the image's digest.
pub fn run(store: &Store, args: BuildArgs) -> guise_build::Result<()> {
    let bars = Bars::new(args.quiet);
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // Without it an interrupt ends the process at once; a collection then
        // removes what is left.
        let _ = signal_hook::flag::register(signal, Arc::clone(&interrupted));
    }
    let build = Build {
        containerfile: args.file.unwrap_or_else(|| Build::containerfile_of(&args.context)),
        context: args.context,
        tags: args.tags,
        arguments: arguments(args.arguments),
        target: args.target,
        no_cache: args.no_cache,
        pull: args.pull,
        network: match args.network {
            BuildNetwork::Host => Network::Host,
            BuildNetwork::None => Network::None,
        },
        limits: args.limits.limits(),
        output: if args.quiet { Output::Kept } else { Output::Shown },
        runtime: "/proc/self/exe".into(),
        interrupted,
    };
    let built = build.run(store, &bars);
    bars.finish();
    println!("{}", built?.digest);
    Ok(())
}

/// The same as a request to the daemon of another host, where the paths are; and whether it is
/// to be quiet.
pub fn request(args: BuildArgs) -> Result<(guise_api::Build, bool), String> {
    let path = |path: PathBuf| {
        path.into_os_string().into_string().map_err(|path| format!("{path:?} is not UTF-8"))
    };
    let wanted = guise_api::Build {
        context: path(args.context)?,
        containerfile: args.file.map(path).transpose()?,
        tags: args.tags.iter().map(ToString::to_string).collect(),
        arguments: arguments(args.arguments),
        target: args.target,
        no_cache: args.no_cache,
        pull: args.pull,
        network: match args.network {
            BuildNetwork::Host => guise_api::BuildNetwork::Host,
            BuildNetwork::None => guise_api::BuildNetwork::None,
        },
    };
    Ok((wanted, args.quiet))
}

fn arguments(list: Vec<String>) -> BTreeMap<String, String> {
    list.into_iter()
        .filter_map(|text| match text.split_once('=') {
            Some((name, value)) => Some((name.to_owned(), value.to_owned())),
            None => std::env::var(&text).ok().map(|value| (text, value)),
        })
        .collect()
}
