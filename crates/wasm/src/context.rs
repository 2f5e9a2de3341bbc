//! What a program may import.

use std::net::{IpAddr, SocketAddr};

use wasmtime_wasi::cli::StdoutStream as _;
use wasmtime_wasi::p2::OutputStream;
use wasmtime_wasi::sockets::SocketAddrUse;
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

use crate::pipe::{Input, Output};
use crate::{Network, Program, StartError};

/// What a program gets, and its two outputs, to be emptied when it has ended.
pub struct Given {
    pub context: WasiCtxBuilder,
    pub outputs: [Box<dyn OutputStream>; 2],
}

/// Puts together what the program gets. To be called where a runtime is.
pub fn of(program: Program) -> Result<Given, StartError> {
    let mut context = WasiCtxBuilder::new();
    context.args(&program.arguments).envs(&program.environment);
    for folder in &program.folders {
        let permissions = if folder.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
        context.preopened_dir(&folder.host, &folder.guest, permissions).map_err(|error| {
            let why = format!("{}: {}", folder.host.display(), error.root_cause());
            StartError::Failed { what: "open a folder for the program", why }
        })?;
    }
    match program.network {
        Network::None => {}
        Network::Outwards => {
            let check = |address, purpose| {
                let allowed = leads_outwards(address, purpose);
                Box::pin(async move { allowed }) as _
            };
            context.socket_addr_check(check);
            allow_sockets(&mut context);
        }
        Network::Host => {
            context.inherit_network();
            allow_sockets(&mut context);
        }
    }
    let streams = program.streams;
    let prepare = || StartError::failed("prepare the program's streams");
    if let Some(input) = streams.input {
        context.stdin(Input::new(input, streams.terminal).map_err(prepare())?);
    }
    let output = Output::new(streams.output, streams.terminal).map_err(prepare())?;
    let errors = Output::new(streams.errors, streams.terminal).map_err(prepare())?;
    let outputs = [output.p2_stream(), errors.p2_stream()];
    context.stdout(output).stderr(errors);
    Ok(Given { context, outputs })
}

fn allow_sockets(context: &mut WasiCtxBuilder) {
    context.allow_tcp(true).allow_udp(true).allow_ip_name_lookup(true);
}

/// Whether a socket only speaks with others than this host, and does not listen.
fn leads_outwards(address: SocketAddr, purpose: SocketAddrUse) -> bool {
    let ip = match address.ip() {
        IpAddr::V6(ip) => ip.to_canonical(),
        ip => ip,
    };
    match purpose {
        SocketAddrUse::TcpConnect | SocketAddrUse::UdpSend | SocketAddrUse::UdpReceive => {
            !ip.is_loopback() && !ip.is_unspecified()
        }
        // As every socket is that connects without having been bound.
        SocketAddrUse::TcpBind | SocketAddrUse::UdpBind => {
            ip.is_unspecified() && address.port() == 0
        }
        SocketAddrUse::TcpListen | SocketAddrUse::TcpAccept => false,
    }
}
