//! The init of a container that asks for one (`--init`): process 1, in the code of the shim, with the container's rights alone.
//!
//! I1  It executes nothing and mounts nothing: it works in an image without any file of its own.
//! I2  Every signal but those about children goes on to the program; the program's end is its own, with the same code.
//! I3  What loses its parent in the container is reaped here.

use std::io;

use rustix::process::{DumpableBehavior, Pid, WaitOptions};

use crate::sys;

/// Splits this process: returns in a child, which is to execute the program; the process itself is the init from here on and
/// never returns.
pub(super) fn become_init() -> io::Result<()> {
    // Before the fork, so that no signal is lost between it and the first wait.
    sys::block_all_signals()?;
    match sys::fork_inside()? {
        sys::Forked::Child => {
            // A group of its own, and the terminal's where there is one: keys reach the program, not this process.
            let _ = rustix::process::setpgid(None, None);
            let _ = rustix::termios::tcsetpgrp(rustix::stdio::stdin(), rustix::process::getpgrp());
            Ok(())
        }
        sys::Forked::Parent(pid) => watch(pid),
    }
}

fn watch(program: i32) -> ! {
    // The pipe that tells of an execution must not be held open here; and nothing of the container looks into this process.
    sys::close_inherited();
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let _ = rustix::thread::set_name(c"docker-init");
    sys::trim_memory();
    let program = Pid::from_raw(program);
    loop {
        match (sys::next_signal(), program) {
            (Ok(libc::SIGCHLD), _) => reap(program),
            // It may have ended; then SIGCHLD comes next.
            (Ok(signal), Some(pid)) => drop(sys::signal_child(pid, signal)),
            _ => {}
        }
    }
}

/// Takes what has ended; ends with the program.
fn reap(program: Option<Pid>) {
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if Some(pid) == program {
            let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
            sys::exit_now(code.unwrap_or(255));
        }
    }
}
