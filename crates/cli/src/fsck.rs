//! `baleen fsck`: the check and repair of a store, without a daemon.
//!
//! F1  The report goes to the standard output, progress and errors to the standard error.
//! F2  A first SIGINT or SIGTERM ends the check at the next file and reports what was found; a second one ends the program.

use std::cell::OnceCell;
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use baleen_daemon::LayerFetcher;
use baleen_fsck::{EXIT_CLEAN, EXIT_OPERATIONAL, EXIT_USAGE, Progress, Report, Source};
use baleen_store::{Inspection, LayerKey, Store, StoreError, SystemDisk};
use nix::sys::signal::{SigSet, Signal};

const DATA_ROOT: &str = "/var/lib/baleen";
/// How often progress is drawn.
const DRAWN_EVERY: Duration = Duration::from_millis(100);
/// Cells of the progress bar.
const BAR_CELLS: u64 = 30;

const HELP: &str = "\
Usage: baleen fsck [OPTIONS]

Check the store of a daemon that does not run. Without an option: what was in flight.

Options:
      --data-root DIR   The store (default /var/lib/baleen)
      --deep            Verify every byte of every image, and the log against the tree
      --repair          Put right what was found: by itself what a start of the daemon would, with --deep everything.
                        A layer that nothing at hand can mend is fetched again from its registry
      --offline         Fetch nothing: such a layer is left to the next pull of its image
      --config-file F   The daemon's, for its registries (default /etc/docker/daemon.json)
      --after OBJECT    Go on with a deep check that was stopped
      --usage           Tell what the space is used for: bytes by class, for all that du counts
      --json            Report as JSON
      --quiet           No progress
      --help            Print this

Exit codes are those of e2fsck: 0 clean, 1 corrected, 4 left uncorrected, 8 the check could not be made, 16 usage;
they are added up. What each finding means: docs/fsck.md.
";

struct Options {
    data_root: PathBuf,
    deep: bool,
    repair: bool,
    after: Option<String>,
    json: bool,
    usage: bool,
    quiet: bool,
    offline: bool,
    config_file: Option<PathBuf>,
}

/// Runs `baleen fsck` with what follows that word.
pub(crate) fn run(arguments: impl Iterator<Item = String>) -> ExitCode {
    let options = match parse(arguments) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::from(EXIT_CLEAN);
        }
        Err(problem) => {
            eprintln!("baleen fsck: {problem}; `baleen fsck --help` lists the options.");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match check(&options) {
        Ok(Some(report)) => {
            let text = if options.json { report.to_json() + "\n" } else { report.to_text() };
            let written = std::io::stdout().write_all(text.as_bytes());
            if let Err(error) = written {
                eprintln!("baleen fsck: cannot write the report: {error}");
                return ExitCode::from(EXIT_OPERATIONAL);
            }
            ExitCode::from(report.exit_code())
        }
        Ok(None) => {
            eprintln!("baleen fsck: there is no store in {} yet", options.data_root.display());
            ExitCode::from(EXIT_CLEAN)
        }
        Err(StoreError::InUse) => {
            let root = options.data_root.display();
            match holder(&options.data_root) {
                Some((pid, command)) => eprintln!(
                    "baleen fsck: the store in {root} is in use by process {pid} ({command}); a store is checked while no \
                     daemon has it: stop that one first (`kill {pid}`, or its service)"
                ),
                None => eprintln!("baleen fsck: {}", crate::chain(&StoreError::InUse)),
            }
            ExitCode::from(EXIT_OPERATIONAL)
        }
        Err(error) => {
            eprintln!("baleen fsck: {}", crate::chain(&error));
            ExitCode::from(EXIT_OPERATIONAL)
        }
    }
}

/// The process that holds the store's lock, and its command line; `None` if the kernel does not say.
fn holder(data_root: &Path) -> Option<(u32, String)> {
    let lock = std::fs::canonicalize(data_root.join("LOCK")).ok()?;
    let inode = format!(":{}", std::fs::metadata(&lock).ok()?.ino());
    // `1: FLOCK  ADVISORY  WRITE 4711 fe:01:1234 0 EOF`; other file systems may have the same number.
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let pids = locks.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = fields.get(1) == Some(&"FLOCK") && fields.get(5)?.ends_with(&inode);
        is_it.then(|| fields.get(4)?.parse::<u32>().ok()).flatten()
    });
    pids.into_iter().find_map(|pid| {
        let mut open = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        open.any(|fd| std::fs::read_link(fd.path()).is_ok_and(|path| path == lock)).then_some(())?;
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = command.split(|byte| *byte == 0).take(2).map(String::from_utf8_lossy).collect();
        let shown: String = words.join(" ").chars().filter(|letter| !letter.is_control()).take(100).collect();
        Some((pid, shown.trim().to_owned()))
    })
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let mut options = Options {
        data_root: DATA_ROOT.into(),
        deep: false,
        repair: false,
        after: None,
        json: false,
        usage: false,
        quiet: false,
        offline: false,
        config_file: None,
    };
    while let Some(argument) = arguments.next() {
        let (name, inline) = match argument.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (argument, None),
        };
        let mut value =
            |inline: Option<String>| inline.or_else(|| arguments.next()).ok_or_else(|| format!("{name} needs a value"));
        match name.as_str() {
            "--data-root" => options.data_root = value(inline)?.into(),
            "--config-file" => options.config_file = Some(value(inline)?.into()),
            "--after" => options.after = Some(value(inline)?),
            _ if inline.is_some() => return Err(format!("{name} takes no value")),
            "--deep" => options.deep = true,
            "--repair" => options.repair = true,
            "--json" => options.json = true,
            "--offline" => options.offline = true,
            "--usage" => options.usage = true,
            "--quiet" => options.quiet = true,
            "--help" | "-h" => return Ok(None),
            other => return Err(format!("unknown option {other:?}")),
        }
    }
    if !options.repair && (options.offline || options.config_file.is_some()) {
        return Err("--offline and --config-file go with --repair".to_owned());
    }
    if options.after.is_some() && (!options.deep || options.repair) {
        return Err("--after goes with --deep, and not with --repair".to_owned());
    }
    Ok(Some(options))
}

/// Checks the store; `None` if there is none yet.
fn check(options: &Options) -> Result<Option<Report>, StoreError> {
    if is_empty(&options.data_root) {
        return Ok(None);
    }
    let io = |source| StoreError::Io { action: "open", path: options.data_root.display().to_string(), source };
    let disk = Arc::new(SystemDisk::open(&options.data_root).map_err(io)?);
    if baleen_store::was_never_finished(disk.as_ref())? {
        return Ok(None);
    }
    if options.repair {
        return repair(options, disk).map(Some);
    }
    let inspection = Inspection::open(disk)?;
    let usage = options.usage.then(|| baleen_fsck::usage(&inspection)).transpose()?;
    if !options.deep {
        let report = baleen_fsck::quick(&inspection)?;
        return Ok(Some(Report { usage, ..report }));
    }
    let stopped = stop_on_signal();
    let mut bar = Bar::new(options);
    let report = baleen_fsck::deep(&inspection, options.after.as_deref(), &mut |progress| {
        bar.draw(progress);
        stopped.load(Ordering::Relaxed)
    });
    bar.clear();
    Ok(Some(Report { usage, ..report? }))
}

fn repair(options: &Options, disk: Arc<SystemDisk>) -> Result<Report, StoreError> {
    // Only a store whose log and FORMAT are both lost gets a new id.
    let mut new_id = [0; 16];
    let id_error = |error: getrandom::Error| StoreError::Io {
        action: "make an id for",
        path: "the store".to_owned(),
        source: std::io::Error::other(error.to_string()),
    };
    getrandom::getrandom(&mut new_id).map_err(id_error)?;
    let (store, findings) = baleen_fsck::open(disk, new_id)?;
    let report = if options.deep {
        let stopped = stop_on_signal();
        let mut bar = Bar::new(options);
        let world = World {
            data_root: options.data_root.clone(),
            store: store.clone(),
            config_file: options.config_file.clone(),
            offline: options.offline,
            stopped: Arc::clone(&stopped),
            fetcher: OnceCell::new(),
        };
        let report = baleen_fsck::repair(&store, &world, findings, &mut |progress| {
            bar.draw(progress);
            stopped.load(Ordering::Relaxed)
        });
        bar.clear();
        // What fetched layers have replaced.
        store.empty_trash(u64::MAX)?;
        report?
    } else {
        baleen_fsck::opened(findings)
    };
    store.close()?;
    let usage = options.usage.then(|| baleen_fsck::usage(&store.inspection()?)).transpose()?;
    Ok(Report { usage, ..report })
}

/// What a repair without a daemon knows of the world: containers outlive their daemon, so their mounts are looked at; and the
/// registries are those of the daemon's configuration.
struct World {
    data_root: PathBuf,
    store: Store,
    config_file: Option<PathBuf>,
    offline: bool,
    stopped: Arc<AtomicBool>,
    /// Made for the first layer that is fetched, or why it cannot be.
    fetcher: OnceCell<Result<LayerFetcher, String>>,
}

impl Source for World {
    fn containers_on(&self, layer: &LayerKey) -> Vec<String> {
        let containers = self.store.containers().into_iter().filter(|container| {
            let image = self.store.image(&container.image);
            image.is_some_and(|image| image.layers.contains(layer)) && self.is_mounted(&container.id)
        });
        containers.map(|container| container.name).collect()
    }

    fn fetch(&self, store: &Store, layer: &LayerKey) -> Result<bool, String> {
        if self.offline {
            return Ok(false);
        }
        let make = || {
            let made = baleen_daemon::layer_fetcher(self.config_file.as_deref());
            made.map_err(|error| crate::chain(&error))
        };
        let fetcher = self.fetcher.get_or_init(make).as_ref().map_err(String::clone)?;
        let fetched = fetcher.fetch(store, layer, &|| self.stopped.load(Ordering::Relaxed));
        fetched.map_err(|error| crate::chain(&error))
    }
}

impl World {
    /// Whether a container's root is mounted. If that cannot be known, it is.
    fn is_mounted(&self, id: &str) -> bool {
        let root = std::fs::canonicalize(&self.data_root).unwrap_or_else(|_| self.data_root.clone());
        let merged = root.join("containers").join(id).join("merged");
        let Ok(mounts) = std::fs::read_to_string("/proc/self/mountinfo") else { return true };
        // The fifth field is the mount point, with spaces and the like as octal numbers.
        let merged = merged.to_string_lossy().replace('\\', "\\134").replace(' ', "\\040");
        mounts.lines().any(|line| line.split(' ').nth(4) == Some(&merged))
    }
}

/// Whether nothing is there to be checked: a fresh device, whose init system checks before the first start.
fn is_empty(data_root: &Path) -> bool {
    match std::fs::read_dir(data_root) {
        Ok(mut names) => names.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// A flag that the first signal sets (F2).
fn stop_on_signal() -> Arc<AtomicBool> {
    let stopped = Arc::new(AtomicBool::new(false));
    let mut signals = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().for_each(|signal| signals.add(signal));
    // Blocked before the thread starts, so that it alone takes them. Without it a signal ends the program: no harm.
    if signals.thread_block().is_ok() {
        let flag = Arc::clone(&stopped);
        std::thread::spawn(move || {
            let mut first = true;
            while signals.wait().is_ok() {
                if !std::mem::replace(&mut first, false) {
                    std::process::exit(EXIT_OPERATIONAL.into());
                }
                flag.store(true, Ordering::Relaxed);
            }
        });
    }
    stopped
}

/// Progress on a terminal.
struct Bar {
    shown: bool,
    drawn: Option<Instant>,
}

impl Bar {
    fn new(options: &Options) -> Self {
        Self { shown: !options.quiet && std::io::stderr().is_terminal(), drawn: None }
    }

    fn draw(&mut self, progress: &Progress) {
        if !self.shown || self.drawn.is_some_and(|drawn| drawn.elapsed() < DRAWN_EVERY) {
            return;
        }
        self.drawn = Some(Instant::now());
        let total_bytes = progress.total_bytes.max(1);
        let done_bytes = progress.done_bytes.min(total_bytes);
        let cells = (u128::from(done_bytes) * u128::from(BAR_CELLS) / u128::from(total_bytes)) as usize;
        let bar = format!("{}{}", "#".repeat(cells), ".".repeat(BAR_CELLS as usize - cells));
        let object: String = progress.object.chars().take(30).collect();
        let (done, total) = (done_bytes >> 20, total_bytes >> 20);
        eprint!("\r[{bar}] {done} of {total} MiB, {} findings, {object}\x1b[K", progress.findings);
    }

    fn clear(&self) {
        if self.drawn.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> impl Iterator<Item = String> {
        line.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn options_are_taken_in_both_forms_and_wrong_ones_are_named() {
        let options = parse(words("--data-root=/d --deep --json --after layers/ab")).unwrap().unwrap();
        assert_eq!((options.data_root, options.after), (PathBuf::from("/d"), Some("layers/ab".to_owned())));
        assert!(options.deep && options.json);
        assert!(parse(words("--help")).unwrap().is_none());
        for wrong in ["--data-root", "--deep=yes", "--what", "--after layers/ab"] {
            assert!(parse(words(wrong)).is_err(), "{wrong}");
        }
    }
}
