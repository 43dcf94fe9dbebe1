//! The filter refuses files to what runs under it, and nothing else. In a binary of its own: the notes of what was
//! refused belong to the process.

use std::io::Write as _;
use std::sync::Mutex;

use baleen_fault_injection::{SealedError, SimulatedDisk, sealed};
use baleen_store::{Disk, SystemDisk};

/// One sealed run at a time: each reports what was refused in the whole process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn calls_past_the_port(run: impl FnOnce() + Send) -> Vec<String> {
    match sealed(run) {
        Err(SealedError::PastThePort { calls }) => calls,
        Ok(()) => Vec::new(),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_sealed_thread_reads_no_file_and_that_it_tried_is_reported() {
    let _guard = ONE_AT_A_TIME.lock();
    let calls = calls_past_the_port(|| {
        let error = std::fs::read("/proc/self/status").expect_err("the filter is on");
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    });
    assert!(!calls.is_empty() && calls.iter().all(|call| call.starts_with("open")), "{calls:?}");
    std::fs::read("/proc/self/status").expect("the thread that sealed is itself free");
}

#[test]
fn a_caller_that_ignores_its_errors_is_reported_too() {
    let _guard = ONE_AT_A_TIME.lock();
    let nowhere = std::env::temp_dir().join("baleen-sealed-nothing");
    type Attempt = Box<dyn FnOnce() + Send>;
    let tries: [(&str, Attempt); 6] = [
        (
            "unlink",
            Box::new({
                let path = nowhere.clone();
                move || drop(std::fs::remove_file(path))
            }),
        ),
        (
            "rename",
            Box::new({
                let path = nowhere.clone();
                move || drop(std::fs::rename(&path, &path))
            }),
        ),
        (
            "mkdir",
            Box::new({
                let path = nowhere.clone();
                move || drop(std::fs::create_dir(path))
            }),
        ),
        (
            "stat",
            Box::new({
                let path = nowhere.clone();
                move || drop(std::fs::metadata(path))
            }),
        ),
        (
            "symlink",
            Box::new({
                let path = nowhere.clone();
                move || drop(std::os::unix::fs::symlink("x", path))
            }),
        ),
        ("open", Box::new(move || drop(std::thread::spawn(move || std::fs::write(nowhere, "x")).join()))),
    ];
    for (name, attempt) in tries {
        let calls = calls_past_the_port(attempt);
        assert!(calls.iter().any(|call| call.contains(name)), "{name}: {calls:?}");
    }
}

#[test]
fn the_real_disk_is_refused_even_through_handles_that_were_open_before() {
    let _guard = ONE_AT_A_TIME.lock();
    let disk = SystemDisk::open(&std::env::temp_dir()).expect("the temporary directory opens");
    let root = disk.root().expect("its root opens");
    let calls = calls_past_the_port(|| {
        assert!(disk.metadata_at(&root, b"x").is_err());
        assert!(disk.create_file(&root, b"baleen-sealed", 0o600).is_err());
        assert!(disk.barrier(&root).is_err());
    });
    assert_eq!(calls.len(), 3, "{calls:?}");
}

#[test]
fn the_simulated_disk_threads_memory_and_output_work_under_the_filter() {
    let _guard = ONE_AT_A_TIME.lock();
    let sum = sealed(|| {
        let disk = SimulatedDisk::new();
        let root = disk.root().unwrap();
        let file = disk.create_file(&root, b"file", 0o600).unwrap();
        disk.write_at(&file, &vec![1; 1 << 20], 0).unwrap();
        disk.barrier(&root).unwrap();
        writeln!(std::io::stdout(), "still heard").unwrap();
        let part = std::thread::spawn(|| vec![1_u8; 8 << 20].iter().map(|byte| u64::from(*byte)).sum::<u64>());
        disk.metadata(&file).unwrap().size_bytes + part.join().unwrap()
    });
    assert_eq!(sum.expect("nothing went past the port"), (1 << 20) + (8 << 20));
}

#[test]
fn a_panic_in_a_sealed_thread_reaches_the_caller() {
    let _guard = ONE_AT_A_TIME.lock();
    let panic = std::panic::catch_unwind(|| sealed(|| panic!("out of here"))).expect_err("it went on");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"out of here"));
}
