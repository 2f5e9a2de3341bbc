//! `guise image …`: what instances start from.

mod build;
mod progress;
mod remote;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use guise_daemon::Config;
use guise_image::spec::Platform;
use guise_image::{Limits, Name, Pull, Store, archive, registry};

use progress::Bars;
pub use show::parse_size;

use crate::Failure;
use crate::print::{Format, Output};

#[derive(Args)]
pub struct ImageArgs {
    /// Directory of the image store [default: the daemon's: $GUISE_IMAGES, images in $GUISE_STATE,
    /// /var/lib/guise/images, or ~/.local/share/guise/images]
    #[arg(long, global = true, value_name = "DIR")]
    store: Option<PathBuf>,

    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Subcommand)]
enum ImageCommand {
    /// Fetch an image from a registry, or build it from Debian's archive
    Pull {
        /// debian:12, debian:12-slim, trixie, kernel:debian-12, registry.example/app:1
        name: Name,
        /// For another platform than this host's, such as linux/arm64
        #[arg(long)]
        platform: Option<Platform>,
        /// Debian packages to install beyond the minimum
        #[arg(long, value_delimiter = ',', value_name = "PKG")]
        include: Vec<String>,
        /// Store it under another name
        #[arg(long = "as", value_name = "NAME")]
        stored_as: Option<Name>,
        /// Only if the store does not have it
        #[arg(long)]
        missing: bool,
        /// Make what an instance needs at once, rather than on first use
        #[arg(long, value_name = "FORM")]
        unpack: Option<Form>,
        #[command(flatten)]
        limits: LimitArgs,
        /// Print nothing but errors
        #[arg(short, long)]
        quiet: bool,
    },
    /// List images
    Ls {
        #[command(flatten)]
        output: Output,
    },
    /// Show what an image is and how it starts
    Inspect {
        name: Name,
        /// How to print
        #[arg(short, long, value_enum, default_value = "json")]
        output: Format,
        #[arg(long)]
        platform: Option<Platform>,
    },
    /// Send an image to a registry
    Push {
        name: Name,
        /// Where to, if the name in the store is not the name in the registry
        to: Option<Name>,
        /// Print nothing but errors
        #[arg(short, long)]
        quiet: bool,
    },
    /// Take an image from a file: an OCI layout or archive, a Docker archive,
    /// or a tar file of a root file system
    Import {
        path: PathBuf,
        /// What to call it [default: what the archive calls it]
        name: Option<Name>,
        /// Which image of an archive with several
        #[arg(long, value_name = "NAME")]
        image: Option<String>,
        #[command(flatten)]
        limits: LimitArgs,
        /// Print nothing but errors
        #[arg(short, long)]
        quiet: bool,
    },
    /// Write an image to a file or an OCI layout
    Export {
        name: Name,
        path: PathBuf,
        #[arg(long, value_enum, default_value = "oci-archive")]
        format: ExportFormat,
        /// For Docker archives, which have one platform only
        #[arg(long)]
        platform: Option<Platform>,
    },
    /// Remove images, and what only they needed
    Rm {
        #[arg(required = true)]
        names: Vec<Name>,
        /// Remove them from their registries instead
        #[arg(long)]
        remote: bool,
    },
    /// Give an image another name
    Tag { name: Name, new: Name },
    /// Make an image's file system and print where it is
    Unpack {
        name: Name,
        /// What to make of it [default: erofs, or kernel for a kernel]
        #[arg(long = "as", value_name = "FORM")]
        form: Option<Form>,
        #[arg(long)]
        platform: Option<Platform>,
        #[command(flatten)]
        limits: LimitArgs,
        #[command(flatten)]
        output: Output,
        /// Print nothing but the result and errors
        #[arg(short, long)]
        quiet: bool,
    },
    /// Build an image from a Containerfile
    Build(build::BuildArgs),
    /// Remove what no image needs any more
    Gc {
        /// Forget also what builds keep of their steps
        #[arg(long)]
        build_cache: bool,
    },
}

impl ImageCommand {
    /// Whether it may take much of the store's space.
    fn adds(&self) -> bool {
        matches!(
            self,
            ImageCommand::Pull { .. }
                | ImageCommand::Import { .. }
                | ImageCommand::Unpack { .. }
                | ImageCommand::Build(_)
        )
    }
}

#[derive(Args)]
struct LimitArgs {
    /// Refuse layers that unpack to more bytes (suffixes K, M, G, T)
    #[arg(long, value_name = "SIZE", value_parser = show::parse_size, default_value = "64G")]
    max_unpacked: u64,
}

impl LimitArgs {
    fn limits(&self) -> Limits {
        Limits { unpacked_bytes: self.max_unpacked, ..Limits::default() }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExportFormat {
    /// A directory, which may hold several images
    OciLayout,
    /// The same as one tar file
    OciArchive,
    /// What `docker load` reads
    DockerArchive,
}

impl From<ExportFormat> for archive::Format {
    fn from(format: ExportFormat) -> Self {
        match format {
            ExportFormat::OciLayout => Self::OciLayout,
            ExportFormat::OciArchive => Self::OciArchive,
            ExportFormat::DockerArchive => Self::DockerArchive,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A directory per layer, for overlayfs
    Layers,
    /// One read-only EROFS file
    Erofs,
    /// A kernel and its modules
    Kernel,
}

/// Runs the subcommand. Errors are one line on stderr.
pub fn run(args: ImageArgs) -> ExitCode {
    if let Some(host) = crate::instance::other_host() {
        return crate::report(remote::run(args.command, &host));
    }
    // Where the daemon has its images.
    let place = match args.store {
        Some(place) => place,
        None => match Config::of_this_user() {
            Ok(config) => config.images,
            Err(error) => return crate::report(Err(Failure::failed(error))),
        },
    };
    if args.command.adds()
        && let Err(refused) = guise_daemon::check_store(&place)
    {
        return crate::report(Err(refused.into()));
    }
    match dispatch(args.command, place) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guise: {error}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: ImageCommand, place: PathBuf) -> guise_build::Result<()> {
    let store = Store::open(place)?;
    match command {
        ImageCommand::Pull {
            name,
            platform,
            include,
            stored_as,
            missing,
            unpack,
            limits,
            quiet,
        } => {
            let bars = Bars::new(quiet);
            let stored = stored_as.clone().unwrap_or_else(|| name.clone());
            let pull = Pull { platform: platform.clone(), include, name: stored_as, missing };
            let target = pull.run(&store, &name, &bars)?;
            let made = unpack.map(|form| {
                show::make(&store, &stored, Some(form), platform.as_ref(), limits.limits(), &bars)
            });
            bars.finish();
            made.transpose()?;
            if !quiet {
                println!("{}", target.digest);
            }
            Ok(())
        }
        ImageCommand::Ls { output } => Ok(show::list(&store, output.format())?),
        ImageCommand::Inspect { name, output, platform } => {
            Ok(show::inspect(&store, &name, platform.as_ref(), output)?)
        }
        ImageCommand::Push { name, to, quiet } => {
            let bars = Bars::new(quiet);
            let to = to.unwrap_or_else(|| name.clone());
            let digest = registry::push(&store, &name, &to, &bars)?;
            bars.finish();
            if !quiet {
                println!("{digest}");
            }
            Ok(())
        }
        ImageCommand::Import { path, name, image, limits, quiet } => {
            let bars = Bars::new(quiet);
            let session = store.session()?;
            let imported =
                archive::import(&session, &path, image.as_deref(), limits.limits(), &bars)?;
            bars.finish();
            let name = show::imported_name(&path, name, imported.name.as_deref())?;
            session.set_reference(&name, &imported.target)?;
            if !quiet {
                println!("{name} {}", imported.target.digest);
            }
            Ok(())
        }
        ImageCommand::Export { name, path, format, platform } => {
            Ok(archive::export(&store, &name, platform.as_ref(), format.into(), &path)?)
        }
        ImageCommand::Rm { names, remote: true } => {
            for name in &names {
                println!("{name} {}", registry::delete(name)?);
            }
            Ok(())
        }
        ImageCommand::Rm { names, remote: false } => {
            for name in &names {
                store.remove_reference(name)?;
                println!("{name}");
            }
            Ok(show::collect(&store)?)
        }
        ImageCommand::Tag { name, new } => {
            let session = store.session()?;
            Ok(session.set_reference(&new, &store.reference(&name)?.target)?)
        }
        ImageCommand::Unpack { name, form, platform, limits, output, quiet } => {
            let bars = Bars::new(quiet);
            let made = show::make(&store, &name, form, platform.as_ref(), limits.limits(), &bars);
            bars.finish();
            show::print_made(&made?, output.format());
            Ok(())
        }
        ImageCommand::Build(args) => build::run(&store, args),
        ImageCommand::Gc { build_cache } => {
            if build_cache {
                guise_build::forget_cache(&store)?;
            }
            Ok(show::collect(&store)?)
        }
    }
}
