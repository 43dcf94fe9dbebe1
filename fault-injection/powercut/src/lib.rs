//! Records what a program writes to a disk, and judges it in every state that a power cut could have left.
//!
//! A file in user space backs a loop device that carries a real file system; every write and every flush of it is
//! recorded in order, with what the program acknowledged between them. From the recording come the states: at any flush,
//! with any part of the writes that came after it. Each is mounted, at the path where it was recorded, and the program's
//! own adapter judges it. `docs/powercut.md` says what that shows and what it does not.
//!
//! - [`workload`]: what a program under test has to provide.
//! - [`record()`], [`record_on()`]: from a workload to a [`Recording`].
//! - [`explore()`], [`judge()`]: from a recording to a [`Verdict`] for each [`State`].
//! - [`Toy`]: small writers by which the judge is judged.

#![deny(unsafe_code)]

pub mod engines;
pub mod workload;

mod agent;
mod contents;
mod device;
mod disk;
mod explore;
mod external;
mod fault;
mod filesystem;
mod live;
mod quiet;
mod record;
mod report;
mod results;
mod rig;
mod runs;
mod stage;
mod state;
#[expect(unsafe_code, reason = "loop devices, the place of a file on its disk, a mount namespace")]
mod sys;
mod toys;

pub use agent::{AgentError, Cuts, LOST_JUDGE, Round, agent, judge_agent, with_device_place};
pub use contents::BLOCK_BYTES;
pub use disk::CutWrites;
pub use explore::{Judged, Plan, Summary, explore, judge};
pub use external::External;
pub use fault::{Fault, NotAFault, Request};
pub use filesystem::{FileSystem, UnknownFileSystem};
pub use live::{DISK_VARIABLE, LiveDisk, RUN_VARIABLE, image_of, replay, serve, with_disk};
pub use record::{Description, RecordError, Recording};
pub use report::{Report, ReportError, Section};
pub use results::{Results, ResultsError, Totals};
pub use rig::{RecordOptions, RigError, Verdict, record, record_on};
pub use runs::{Run, RunError, judge_the_judge, reap, workload as workload_by_name, workload_names};
pub use state::{KeptSet, Kind, NotAState, State};
pub use toys::Toy;
