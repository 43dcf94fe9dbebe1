//! `baleen-powercut`: the command line of the rig (`docs/powercut.md`).

fn main() {
    eprintln!("not here yet");
    std::process::exit(2);
}
