//! System instructions, which user mode cannot run and no differential test can compare
//! with the processor: tables written from the vendors' manuals. Each line is an
//! instruction in a mode, and how it must end: done, or with which exception and error
//! code, and what is different afterwards.

mod control;
mod descriptors;
mod halts;
mod keys;
mod machine;
mod memory;
#[path = "../port_board/mod.rs"]
mod port_board;
mod privilege;
mod transfers;
