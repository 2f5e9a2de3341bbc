//! What can be done with containers: one file per operation. All of them work
//! from the state directory alone.

mod conversation;
mod create;
mod delete;
mod events;
mod exec;
mod features;
mod gate;
mod kill;
mod launch;
mod list;
mod pause;
mod ps;
mod relay;
mod start;
mod update;

pub use create::{CreateOptions, create, run};
pub use delete::delete;
pub use events::{Event, stats, watch};
pub use exec::{ExecOptions, exec};
pub use features::features;
pub use kill::{kill, parse_signal};
pub use list::{Listed, list, state};
pub use pause::{pause, resume};
pub use ps::{ProcessLine, ps};
pub use start::start;
pub use update::update;
