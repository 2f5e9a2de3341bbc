//! The interpreter: decodes instructions into blocks of operations and executes them.
//!
//! | module | subject |
//! |---|---|
//! | [`int`] | integer widths with the host's arithmetic |
//! | [`op`] | what a decoded instruction is |
//! | [`decode`] | from instruction to operation |
//! | [`cache`] | decoded blocks, how they are found and forgotten |
//! | [`run`] | the loop that executes them |
//! | the rest | handlers, by kind of instruction |

pub mod alu;
pub mod bits;
pub mod branch;
pub mod cache;
pub mod decode;
pub mod int;
pub mod moves;
pub mod multiply;
pub mod op;
pub mod ports;
pub mod processor;
pub mod run;
pub mod shift;
pub mod stack;
pub mod strings;
pub mod system;
pub mod vector;
