//! Signals that reach the client and are meant for the container, and the size of its window.

use std::future::pending;
use std::sync::mpsc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::super::http::{Request, name};
use super::super::{Client, output};

/// What is passed on: number and name. KILL and STOP cannot be, CHLD, PIPE and WINCH are our own.
const PASSED: &[(i32, &str)] = &[
    (1, "HUP"),
    (2, "INT"),
    (3, "QUIT"),
    (10, "USR1"),
    (12, "USR2"),
    (14, "ALRM"),
    (15, "TERM"),
    (18, "CONT"),
    (20, "TSTP"),
];
/// So many of these in a row end the client, should the container not.
const PATIENCE: usize = 3;

/// Watches signals on a thread of its own; returns once it does.
fn watch(kinds: Vec<(SignalKind, &'static str)>, act: impl Fn(&'static str) + Clone + Send + 'static) {
    let (sender, ready) = mpsc::channel();
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            for (kind, name) in kinds {
                let Ok(mut signals) = signal(kind) else { continue };
                let act = act.clone();
                tokio::spawn(async move {
                    while signals.recv().await.is_some() {
                        act(name);
                    }
                });
            }
            let _ = sender.send(());
            pending::<()>().await;
        });
    });
    // If the thread could not start, signals act as they always do.
    let _ = ready.recv();
}

/// Passes signals on to a container from now on.
pub(crate) fn pass_on(client: &Client, container: &str) {
    let (client, path) = (client.clone(), format!("/containers/{}/kill", name(container)));
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let kinds = PASSED.iter().map(|(number, name)| (SignalKind::from_raw(*number), *name)).collect();
    watch(kinds, move |name| {
        if matches!(name, "INT" | "TERM") {
            let before = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if before + 1 >= PATIENCE {
                output::tell(&format!("got {PATIENCE} SIGTERM/SIGINTs, forcefully exiting"));
                std::process::exit(1);
            }
        }
        // A container that has ended cannot be told; its end is about to be noticed.
        let _ = client.command(Request::post(path.as_str()).query("signal", name));
    });
}

/// Tells the daemon the size of our window now and whenever it changes. The path is that of a container or an exec.
pub(crate) fn follow_size(client: &Client, path: String) {
    if super::size().is_none() {
        return;
    }
    let client = client.clone();
    let tell = move || match super::size() {
        Some((rows, columns)) => client
            .command(
                Request::post(format!("{path}/resize")).query("h", rows.to_string()).query("w", columns.to_string()),
            )
            .is_ok(),
        None => true,
    };
    // The process may not be there in the first moments.
    for attempt in 0..5 {
        if tell() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10 << attempt));
    }
    watch(vec![(SignalKind::window_change(), "WINCH")], move |_| {
        tell();
    });
}
