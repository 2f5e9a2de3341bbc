//! From a file's bytes to a program that is ready to run.

use std::pin::Pin;
use std::sync::Arc;

use wasmtime::component::{Component, Linker as ComponentLinker, ResourceTable};
use wasmtime::{Config, Engine, Linker, Module, Store};
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::{I32Exit, WasiCtx, WasiCtxView, WasiView, p2};

use crate::StartError;
use crate::context::Given;
use crate::memory::{Limits, Meter};
use crate::pipe::drain;

/// How a file begins: the magic number, then version and kind.
const MODULE: &[u8] = b"\0asm\x01\0\0\0";
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// How many ticks of the clock a program runs before it lets others look.
const TURN: u64 = 1;

/// A program from its first instruction to its last.
pub type Life = Pin<Box<dyn Future<Output = wasmtime::Result<()>>>>;

/// Code for this host.
pub enum Code {
    Module(Module),
    Component(Component),
}

/// What a store holds for its program.
struct Held<W> {
    wasi: W,
    limits: Limits,
}

/// What a component's imports are served from.
struct Imports {
    context: WasiCtx,
    table: ResourceTable,
}

impl WasiView for Held<Imports> {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi.context, table: &mut self.wasi.table }
    }
}

/// An engine whose programs can be interrupted anywhere.
pub fn engine() -> Result<Engine, StartError> {
    let mut config = Config::new();
    config.epoch_interruption(true);
    Engine::new(&config).map_err(|error| StartError::Failed {
        what: "make an engine for WebAssembly",
        why: cause(&error),
    })
}

impl Code {
    pub fn compile(engine: &Engine, bytes: &[u8]) -> Result<Code, StartError> {
        let refused = |error: wasmtime::Error| StartError::NotExecutable(cause(&error));
        match bytes.get(..MODULE.len()) {
            Some(MODULE) => {
                let module = Module::new(engine, bytes).map_err(refused)?;
                match module.get_export("_start").is_some_and(|export| export.func().is_some()) {
                    true => Ok(Code::Module(module)),
                    false => Err(StartError::NotExecutable(
                        "it has no function _start: it is a library".to_owned(),
                    )),
                }
            }
            Some(COMPONENT) => Component::new(engine, bytes).map(Code::Component).map_err(refused),
            _ => Err(StartError::NotExecutable(
                "it is neither a WebAssembly module nor a component".to_owned(),
            )),
        }
    }

    /// Gives the program what it imports.
    pub fn link(
        &self,
        engine: &Engine,
        given: Given,
        meter: Arc<Meter>,
    ) -> Result<Life, StartError> {
        let lacking = |error: wasmtime::Error| StartError::NotExecutable(cause(&error));
        let Given { mut context, outputs } = given;
        let limits = Limits(meter);
        let life: Life = match self {
            Code::Module(module) => {
                let mut linker: Linker<Held<WasiP1Ctx>> = Linker::new(engine);
                p1::add_to_linker_async(&mut linker, |held| &mut held.wasi).map_err(lacking)?;
                let ready = linker.instantiate_pre(module).map_err(lacking)?;
                let mut store = store(engine, Held { wasi: context.build_p1(), limits });
                Box::pin(async move {
                    let instance = ready.instantiate_async(&mut store).await?;
                    let start = instance.get_typed_func::<(), ()>(&mut store, "_start")?;
                    start.call_async(&mut store, ()).await
                })
            }
            Code::Component(component) => {
                let mut linker: ComponentLinker<Held<Imports>> = ComponentLinker::new(engine);
                p2::add_to_linker_async(&mut linker).map_err(lacking)?;
                let ready =
                    linker.instantiate_pre(component).and_then(CommandPre::new).map_err(lacking)?;
                let wasi = Imports { context: context.build(), table: ResourceTable::new() };
                let mut store = store(engine, Held { wasi, limits });
                Box::pin(async move {
                    let command = ready.instantiate_async(&mut store).await?;
                    match command.wasi_cli_run().call_run(&mut store).await? {
                        Ok(()) => Ok(()),
                        Err(()) => Err(I32Exit(1).into()),
                    }
                })
            }
        };
        Ok(Box::pin(async move {
            let result = life.await;
            for output in outputs {
                drain(output).await;
            }
            result
        }))
    }
}

fn store<W: 'static>(engine: &Engine, held: Held<W>) -> Store<Held<W>> {
    let mut store = Store::new(engine, held);
    store.limiter(|held| &mut held.limits);
    store.set_epoch_deadline(TURN);
    store.epoch_deadline_async_yield_and_update(TURN);
    store
}

/// What is at the bottom of an error, on one line.
pub fn cause(error: &wasmtime::Error) -> String {
    let text = error.root_cause().to_string();
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}
