//! A recording that something else wrote early is no evidence. Alone in its program, since what it does disturbs every
//! recording that is being made on this machine.

mod support;

use std::fs;

use baleen_powercut::workload::{Broken, History, Marks, Place, Workload, WorkloadError};
use baleen_powercut::{FileSystem, RecordError, RecordOptions, Recording, RigError, record};
use support::{Scratch, skipped};

/// Writes without a sync; another program syncs everything meanwhile, `disturbed` times.
struct Disturbed {
    times: u32,
}

impl Workload for Disturbed {
    fn name(&self) -> String {
        "disturbed".to_owned()
    }

    fn run(&mut self, place: &Place<'_>, _: &Marks) -> Result<(), WorkloadError> {
        fs::write(place.disk.join("file"), [1; 5000]).map_err(|error| WorkloadError::failed("write", error))?;
        if self.times > 0 {
            self.times -= 1;
            let synced = std::process::Command::new("sync").status();
            assert!(synced.is_ok_and(|status| status.success()), "sync(1) failed");
        }
        Ok(())
    }

    fn check(&mut self, _: &Place<'_>, _: &History) -> Result<Vec<Broken>, WorkloadError> {
        Ok(Vec::new())
    }
}

#[test]
fn a_recording_with_a_sync_of_another_program_is_refused_and_made_again() {
    if skipped("a_recording_with_a_sync_of_another_program_is_refused_and_made_again") {
        return;
    }
    let scratch = Scratch::new("quiet");
    let path = scratch.0.join("r");
    let options = RecordOptions { attempts: 2, ..RecordOptions::new(FileSystem::Ext4) };
    let never = record(&options, &mut Disturbed { times: 2 }, &path);
    assert!(matches!(&never, Err(RigError::NeverQuiet { attempts: 2, .. })), "{never:?}");
    assert!(matches!(Recording::open(&path), Err(RecordError::NotQuiet { .. })));
    let options = RecordOptions { attempts: 4, ..options };
    record(&options, &mut Disturbed { times: 1 }, &path).expect("the second attempt is quiet");
}
