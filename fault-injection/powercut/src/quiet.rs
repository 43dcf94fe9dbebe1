//! Tells whether something else wrote pages back while a recording was made: that would flatter what is tested.
//!
//! Q1  A second device carries one dirty page that nobody asks to be written. The kernel writes it back for a `sync(2)`
//!     of any program, for want of memory, for too many dirty pages, or once it is old (30 s by default). Before that
//!     age it is the sign of one of the others, and the recording is refused.
//! Q2  What is old is written back on a real device too, so it disturbs nothing: the page is made dirty again.
//! Q3  Pages that reclaim itself wrote are counted by the kernel (`nr_vmscan_write`).
//!
//! Not seen: a `syncfs(2)` or `fsync(2)` on the recorded file system by the program under test or its children. That is
//! its own doing, and recorded as such.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::contents::BLOCK_BYTES;
use crate::device::{BlockStore, Device};

/// Size of the watching device.
const SIZE_BYTES: u64 = 64 << 10;

/// Zeros that note when they are written over.
#[derive(Debug, Default)]
struct Sentinel {
    written_at: Vec<Instant>,
}

impl BlockStore for Sentinel {
    fn read(&mut self, _: u64, bytes: &mut [u8]) -> io::Result<()> {
        bytes.fill(0);
        Ok(())
    }

    fn write(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
        // What is kept of it is bounded: the first tells all.
        if self.written_at.len() < 64 {
            self.written_at.push(Instant::now());
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A watch for early write-back.
#[derive(Debug)]
pub(crate) struct Watch {
    device: Device<Sentinel>,
    node: Option<File>,
    dirty_since: Instant,
    old: Duration,
    reclaimed: u64,
    seen: Vec<String>,
    begun: Instant,
}

impl Watch {
    /// Begins to watch. `mount_point` is an empty folder.
    ///
    /// # Errors
    /// Those of making a device.
    pub(crate) fn begin(mount_point: &Path) -> io::Result<Watch> {
        let device = Device::new(Sentinel::default(), SIZE_BYTES, 512, mount_point)?;
        let node = OpenOptions::new().read(true).write(true).open(device.path())?;
        let expire = fs::read_to_string("/proc/sys/vm/dirty_expire_centisecs")?;
        let centiseconds: u64 = expire.trim().parse().map_err(io::Error::other)?;
        let mut watch = Watch {
            device,
            node: Some(node),
            dirty_since: Instant::now(),
            old: Duration::from_millis(centiseconds * 10),
            reclaimed: written_by_reclaim()?,
            seen: Vec::new(),
            begun: Instant::now(),
        };
        watch.make_dirty()?;
        Ok(watch)
    }

    fn make_dirty(&mut self) -> io::Result<()> {
        if let Some(node) = &self.node {
            node.write_all_at(&[0xba; BLOCK_BYTES], 0)?;
        }
        self.dirty_since = Instant::now();
        Ok(())
    }

    /// Looks whether the page was written back since the last look, and makes it dirty again. To be called every few
    /// seconds of a recording, and at its end.
    ///
    /// # Errors
    /// Those of making the page dirty.
    pub(crate) fn look(&mut self) -> io::Result<()> {
        let written = std::mem::take(&mut self.device.store().written_at);
        let Some(first) = written.first() else { return Ok(()) };
        let age = first.saturating_duration_since(self.dirty_since);
        if age < self.old {
            let when = first.saturating_duration_since(self.begun).as_secs_f64();
            self.seen.push(format!(
                "{when:.1} s after its begin something wrote pages back that were {:.1} s old: a sync of another program, or a want of memory",
                age.as_secs_f64()
            ));
        }
        self.make_dirty()
    }

    /// Ends the watch: what disturbed the recording, nothing if it was quiet.
    ///
    /// # Errors
    /// Those of reading the kernel's counters.
    pub(crate) fn end(mut self) -> io::Result<Vec<String>> {
        self.look()?;
        let reclaimed = written_by_reclaim()?.saturating_sub(self.reclaimed);
        if reclaimed > 0 {
            self.seen.push(format!("memory reclaim wrote {reclaimed} pages back"));
        }
        Ok(std::mem::take(&mut self.seen))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The page goes while the device still answers: the kernel would complain of one that it cannot write.
        let _ = self.device.forget_cache();
        self.node = None;
    }
}

/// Pages that reclaim itself has written since the boot.
fn written_by_reclaim() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/vmstat")?;
    let count = text.lines().find_map(|line| line.strip_prefix("nr_vmscan_write ")?.trim().parse().ok());
    Ok(count.unwrap_or(0))
}
