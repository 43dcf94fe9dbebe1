//! Looking into the layers below: for a hard link whose target is not in its own layer.
//!
//! L1  What is found is what overlayfs shows in the stack of parents: the topmost layer wins, and whiteouts and opaque
//!     directories hide what is below them.
//! L2  Links on the way are followed as in a chroot of that stack. Nothing leads out of it.

use std::io;

use baleen_store::{Handle, Metadata};

/// What is found in the layers below.
#[derive(Debug)]
pub struct LowerNode {
    /// A regular file, open for reading; a directory; any other node by name only.
    pub handle: Handle,
    /// What it is.
    pub metadata: Metadata,
    /// Its attributes; none for what cannot be opened.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// A symbolic link's target.
    pub link: Vec<u8>,
}

/// The stack of a layer's parents. Asked on a thread of its own that is not confined, so it may open files and wait.
pub trait Lower: Send {
    /// Finds the node at `path`, whose last part is not followed if it is a link. `None` if the stack shows nothing there.
    /// May wait until the parents are stored.
    ///
    /// # Errors
    /// Those of the disk; [`io::ErrorKind::NotConnected`] if the parents will not come.
    fn find(&self, path: &[u8]) -> io::Result<Option<LowerNode>>;
}
