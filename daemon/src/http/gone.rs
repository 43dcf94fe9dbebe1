//! The watch on a client: has it closed its connection, both ways?
//!
//! Reading cannot tell, for a client may shut down its write side and still wait for output (`docker run -i < file`), and
//! writing tells only who writes. The kernel says it as `POLLHUP`, which a descriptor registered for writing only is
//! woken by; a duplicate is registered, so that its readiness is nobody else's.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::sys;

/// Tells the handler of a request when its client has gone. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Gone(watch::Receiver<bool>);

impl Gone {
    /// Returns once the client has gone (or its connection has ended for another reason).
    pub(crate) async fn wait(&self) {
        let mut receiver = self.0.clone();
        // An error means that the connection's task has ended, which is the same news.
        let _ = receiver.wait_for(|gone| *gone).await;
    }
}

/// The connection's side of [`Gone`].
pub(super) struct GoneWatch {
    fd: Option<AsyncFd<OwnedFd>>,
    sender: watch::Sender<bool>,
}

impl GoneWatch {
    /// Starts to watch a connection. If the descriptor cannot be duplicated, the watch never fires by itself.
    pub(super) fn new(stream: BorrowedFd<'_>) -> (GoneWatch, Gone) {
        let fd = stream.try_clone_to_owned().and_then(sys::watch_writes);
        let (sender, receiver) = watch::channel(false);
        (GoneWatch { fd: fd.ok(), sender }, Gone(receiver))
    }

    /// Returns once the client has gone, after telling everyone who asked.
    pub(super) async fn wait(&self) {
        if *self.sender.borrow() {
            return;
        }
        match &self.fd {
            Some(fd) if hung_up(fd).await.is_ok() => {
                self.sender.send_replace(true);
            }
            _ => std::future::pending().await,
        }
    }
}

async fn hung_up(fd: &AsyncFd<OwnedFd>) -> io::Result<()> {
    loop {
        let mut ready = fd.ready(Interest::WRITABLE).await?;
        if ready.ready().is_write_closed() {
            return Ok(());
        }
        ready.clear_ready();
    }
}
