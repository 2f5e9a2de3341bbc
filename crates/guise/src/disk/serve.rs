//! `serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use guise_disk::device::BlockDevice;
use guise_disk::graph::{Limits, OpenOptions};
use guise_disk::nbd::{Address, Export, Server};
use guise_disk::ops::parse_size;

use super::Persona;
use super::common::{Failure, Opening, Outcome, kind};
use super::output::{catch_interrupts, interrupted};

#[derive(Args)]
#[command(group(clap::ArgGroup::new("where").required(true).args(["socket", "tcp"])))]
pub struct ServeArgs {
    #[command(flatten)]
    opening: Opening,
    /// Format of the image
    #[arg(short = 'f', long)]
    format: Option<String>,
    /// Listen on this Unix socket
    #[arg(short, long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Listen on the loopback interface: 127.0.0.1:10809
    #[arg(long, value_name = "ADDRESS")]
    tcp: Option<SocketAddr>,
    /// Name of the export
    #[arg(short = 'x', long, default_value = "")]
    export: String,
    /// Text about the export
    #[arg(long, default_value = "")]
    description: String,
    /// Refuse writes
    #[arg(short, long)]
    read_only: bool,
    /// Dirty bitmaps that clients may ask for
    #[arg(short = 'B', long)]
    bitmap: Vec<String>,
    /// End after so many clients; without it, serve until interrupted
    #[arg(long, value_name = "CLIENTS")]
    clients: Option<usize>,
    /// Requests in a second, for all clients together
    #[arg(long, value_name = "N")]
    max_requests: Option<String>,
    /// Bytes in a second, for all clients together
    #[arg(long, value_name = "SIZE")]
    max_bytes: Option<String>,
    /// Bring the disk to this image as well, and keep it the same
    #[arg(long, value_name = "FILE", requires = "mirror_format")]
    mirror: Option<PathBuf>,
    /// Format of the mirror
    #[arg(long, value_name = "FORMAT", requires = "mirror")]
    mirror_format: Option<String>,
    /// Cache mode
    #[arg(long)]
    cache: Option<String>,
    file: String,
}

pub fn serve(args: ServeArgs, persona: Persona) -> Outcome {
    let named =
        args.opening.named(&args.file, args.format.as_deref(), args.cache.as_deref(), persona)?;
    let image = if args.read_only { named.read()? } else { named.write(persona)? };
    let mut device = BlockDevice::over(Arc::new(image));
    if let (Some(path), Some(format)) = (&args.mirror, &args.mirror_format) {
        let open = OpenOptions { format: Some(kind(format)?), write: true, ..named.options };
        device = device.mirrored(path, &open)?;
    }
    let rate = |text: &Option<String>| text.as_deref().map(parse_size).transpose();
    let device = device.limited(Limits {
        requests: rate(&args.max_requests)?.unwrap_or(0),
        bytes: rate(&args.max_bytes)?.unwrap_or(0),
    });
    let export = Export {
        name: args.export,
        description: args.description,
        device: device.clone(),
        readonly: args.read_only,
        bitmaps: args.bitmap,
    };
    let address = match (args.socket, args.tcp) {
        (Some(path), _) => Address::Unix(path),
        (None, Some(address)) => Address::Tcp(address),
        (None, None) => return Err(Failure::new("say where to listen: --socket or --tcp")),
    };
    let server = Server::bind(&address, vec![export])?;
    if let Some(address) = server.tcp_address() {
        println!("serving at nbd://{address}");
    }
    catch_interrupts();
    let stop = server.stopper();
    std::thread::spawn(move || {
        while !interrupted() {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        stop.stop();
    });
    server.run(args.clients)?;
    device.close()?;
    Ok(0)
}
