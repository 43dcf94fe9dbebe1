//! Containers: create, run, attach, stop, adopt, remove.

use std::time::Duration;

use anyhow::{Context as _, Result};
use baleen_engine::{
    AttachRequest, ContainerStatus, EngineError, EventQuery, EventType, Kind, OutputStream, RemoveContainer,
    StopRequest, WaitCondition,
};
use baleen_tests::image::busybox;
use baleen_tests::scratch::mounts_below;
use baleen_tests::stub::Stub;
use bytes::Bytes;

use crate::fixture::{Fixture, LIMIT, request};

crate::tests!(
    a_container_runs_its_output_is_logged_and_its_end_is_told,
    a_client_attached_before_the_start_loses_no_byte_and_gives_input,
    a_running_container_outlives_the_engine_and_is_adopted,
    what_ended_while_the_engine_was_away_is_known_and_after_a_reboot_it_is_not,
    a_stop_asks_first_and_kills_after_its_time,
    a_start_that_fails_says_why_and_leaves_nothing,
    names_are_unique_and_made_up_when_none_is_given,
    a_running_container_is_removed_by_force_only,
    a_container_with_auto_remove_goes_with_its_end,
    events_tell_a_life_in_order,
    a_log_that_is_followed_ends_with_the_container,
    an_image_in_use_is_not_deleted,
    what_a_container_wrote_is_there_at_its_next_start,
    a_container_whose_shim_is_killed_ends_and_leaves_no_process,
    what_a_cut_removal_left_in_the_exec_root_goes_at_the_next_start,
    an_export_has_what_the_container_sees_whether_it_runs_or_not,
);

fn with_busybox(label: &str) -> Result<(Fixture, String)> {
    let fixture = Fixture::new(label)?;
    let stub = Stub::start()?;
    stub.add("busybox", "1", &busybox()?);
    let reference = stub.reference("busybox:1");
    fixture.pull(&reference).0?;
    Ok((fixture, reference))
}

fn status(fixture: &Fixture, name: &str) -> Result<ContainerStatus> {
    Ok(fixture.run(fixture.engine().container(name, false))?.state.status)
}

fn a_container_runs_its_output_is_logged_and_its_end_is_told() -> Result<()> {
    let (fixture, image) = with_busybox("run")?;
    let id = fixture.start(&image, &["sh", "-c", "echo out; echo err >&2; cat /etc/hostname; exit 7"])?;
    assert_eq!(fixture.exit_code(&id)?, 7);
    assert_eq!(fixture.output(&id, OutputStream::Stdout, false)?, format!("out\n{}\n", &id[..12]));
    assert_eq!(fixture.output(&id, OutputStream::Stderr, false)?, "err\n");
    let details = fixture.run(fixture.engine().container(&id, true))?;
    assert_eq!((details.state.status, details.state.exit_code), (ContainerStatus::Exited, 7));
    assert!(details.state.started_at <= details.state.finished_at && !details.state.started_at.is_zero());
    assert_eq!(mounts_below(fixture.scratch.path()), Vec::<std::path::PathBuf>::new());
    Ok(())
}

fn a_client_attached_before_the_start_loses_no_byte_and_gives_input() -> Result<()> {
    let (fixture, image) = with_busybox("attach")?;
    let engine = fixture.engine();
    let mut request = request(&image, &["sh", "-c", "echo first; cat; echo last"]);
    (request.config.open_stdin, request.config.stdin_once) = (true, true);
    let id = fixture.run(engine.create_container(request))?.id;
    let text = fixture.run(async {
        let wanted = AttachRequest { stream: true, stdin: true, stdout: true, ..AttachRequest::default() };
        let mut attached = engine.attach_container(&id, wanted).await?;
        let mut input = attached.input.take().expect("the container takes input");
        engine.start_container(&id).await?;
        input.write(Bytes::from_static(b"middle\n")).await?;
        input.close();
        let mut text = Vec::new();
        while let Some(frame) = attached.output.next().await {
            text.extend_from_slice(&frame.bytes);
        }
        Ok(text)
    })?;
    assert_eq!(String::from_utf8(text)?, "first\nmiddle\nlast\n");
    assert_eq!(fixture.exit_code(&id)?, 0);
    Ok(())
}

fn a_running_container_outlives_the_engine_and_is_adopted() -> Result<()> {
    let (mut fixture, image) = with_busybox("adopt")?;
    let id = fixture.start(&image, &["sh", "-c", "echo before; sleep 1000 & wait; echo never"])?;
    let before = fixture.run(fixture.engine().container(&id, false))?.state;
    fixture.abandon()?;
    fixture.open()?;
    let after = fixture.run(fixture.engine().container(&id, false))?.state;
    assert_eq!((after.status, after.pid, after.started_at), (ContainerStatus::Running, before.pid, before.started_at));
    let engine = fixture.engine();
    fixture.run(engine.kill_container(&id, "KILL"))?;
    assert_eq!(fixture.exit_code(&id)?, 137);
    assert_eq!(fixture.output(&id, OutputStream::Stdout, false)?, "before\n");
    Ok(())
}

fn what_ended_while_the_engine_was_away_is_known_and_after_a_reboot_it_is_not() -> Result<()> {
    let (mut fixture, image) = with_busybox("away")?;
    // It ends when its input does, which the test holds.
    let mut wanted = request(&image, &["sh", "-c", "kill -STOP $$; exit 3"]);
    wanted.name = Some("box".to_owned());
    let engine = fixture.engine();
    let id = fixture.run(engine.create_container(wanted))?.id;
    fixture.run(engine.start_container(&id))?;
    let pid = fixture.run(engine.container(&id, false))?.state.pid;
    drop(engine);
    fixture.abandon()?;
    // Stopped or about to be: the signal is sent until the process has ended.
    let process = rustix::process::Pid::from_raw(pid as i32).context("no process")?;
    let exit_record = fixture.scratch.join(format!("run/containers/{id}/exit.json"));
    let begun = std::time::Instant::now();
    while !exit_record.exists() {
        assert!(begun.elapsed() < LIMIT, "the container never ended");
        let _ = rustix::process::kill_process(process, rustix::process::Signal::CONT);
        std::thread::sleep(Duration::from_millis(5));
    }
    fixture.open()?;
    let state = fixture.run(fixture.engine().container("box", false))?.state;
    assert_eq!((state.status, state.exit_code), (ContainerStatus::Exited, 3));
    fixture.abandon()?;
    // A reboot empties the exec root.
    std::fs::remove_dir_all(fixture.scratch.join("run"))?;
    fixture.open()?;
    let state = fixture.run(fixture.engine().container("box", false))?.state;
    assert_eq!((state.status, state.exit_code), (ContainerStatus::Exited, 255));
    Ok(())
}

fn a_stop_asks_first_and_kills_after_its_time() -> Result<()> {
    let (fixture, image) = with_busybox("stop")?;
    let engine = fixture.engine();
    let polite =
        fixture.start(&image, &["sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"])?;
    let deaf = fixture.start(&image, &["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"])?;
    for id in [&polite, &deaf] {
        let begun = std::time::Instant::now();
        while fixture.output(id, OutputStream::Stdout, false)? != "ready\n" {
            assert!(begun.elapsed() < LIMIT, "the container is never ready");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    fixture.run(engine.stop_container(&polite, StopRequest::default()))?;
    assert_eq!(fixture.exit_code(&polite)?, 5);
    let soon = StopRequest { timeout_seconds: Some(1), ..StopRequest::default() };
    fixture.run(engine.stop_container(&deaf, soon))?;
    assert_eq!(fixture.exit_code(&deaf)?, 137);
    let again = fixture.run(engine.stop_container(&deaf, StopRequest::default())).expect_err("it has stopped");
    assert_eq!(again.kind(), Kind::NotModified);
    Ok(())
}

fn a_start_that_fails_says_why_and_leaves_nothing() -> Result<()> {
    let (fixture, image) = with_busybox("fail")?;
    let engine = fixture.engine();
    for (command, code, words) in
        [("no-such-program", 127, "executable file not found"), ("/etc/not-a-program", 126, "permission denied")]
    {
        let id = fixture.run(engine.create_container(request(&image, &[command])))?.id;
        let error = fixture.run(engine.start_container(&id)).expect_err("it cannot start");
        assert_eq!(error.kind(), Kind::InvalidParameter);
        assert!(error.to_string().contains(words), "{error}");
        let state = fixture.run(engine.container(&id, false))?.state;
        assert_eq!((state.status, state.exit_code), (ContainerStatus::Created, code));
        assert!(!fixture.scratch.join(format!("run/containers/{id}")).exists());
    }
    assert_eq!(mounts_below(fixture.scratch.path()), Vec::<std::path::PathBuf>::new());
    Ok(())
}

fn names_are_unique_and_made_up_when_none_is_given() -> Result<()> {
    let (fixture, image) = with_busybox("names")?;
    let engine = fixture.engine();
    let named = |name: Option<&str>| {
        let mut wanted = request(&image, &["true"]);
        wanted.name = name.map(str::to_owned);
        fixture.run(engine.create_container(wanted))
    };
    let first = named(Some("/box"))?.id;
    let taken = named(Some("box")).expect_err("the name is taken");
    assert!(matches!(&taken, EngineError::NameInUse { name, id } if name == "box" && *id == first), "{taken}");
    assert!(matches!(named(Some("b x")), Err(EngineError::InvalidName { .. })));
    let nameless = named(None)?.id;
    assert!(fixture.run(engine.container(&nameless, false))?.name.contains('_'));
    let missing = fixture.run(engine.create_container(request("nowhere:1", &["true"]))).expect_err("no such image");
    assert_eq!(missing.to_string(), "No such image: nowhere:1");
    Ok(())
}

fn a_running_container_is_removed_by_force_only() -> Result<()> {
    let (fixture, image) = with_busybox("force")?;
    let engine = fixture.engine();
    let id = fixture.start(&image, &["sleep", "1000"])?;
    let refused = fixture.run(engine.remove_container(&id, RemoveContainer::default())).expect_err("it runs");
    assert!(refused.to_string().contains("stop the container before removing"), "{refused}");
    let removed = fixture.run(engine.wait_container(&id, WaitCondition::Removed))?;
    fixture.run(engine.remove_container(&id, RemoveContainer { force: true, volumes: false }))?;
    assert_eq!(fixture.run(removed.finished())?.code, 137);
    let gone = fixture.run(engine.container(&id, false)).expect_err("it is gone");
    assert_eq!(gone.to_string(), format!("No such container: {id}"));
    for left in ["data/containers", "run/containers", "run/etc"] {
        let left: Vec<_> = std::fs::read_dir(fixture.scratch.join(left))?.collect();
        assert!(left.is_empty(), "{left:?}");
    }
    Ok(())
}

fn a_container_with_auto_remove_goes_with_its_end() -> Result<()> {
    let (fixture, image) = with_busybox("auto")?;
    let engine = fixture.engine();
    let mut wanted = request(&image, &["sh", "-c", "exit 4"]);
    wanted.host_config.auto_remove = true;
    let id = fixture.run(engine.create_container(wanted))?.id;
    let removed = fixture.run(engine.wait_container(&id, WaitCondition::Removed))?;
    fixture.run(engine.start_container(&id))?;
    assert_eq!(fixture.run(removed.finished())?.code, 4);
    assert!(fixture.run(engine.containers(false))?.is_empty());
    Ok(())
}

fn events_tell_a_life_in_order() -> Result<()> {
    let (fixture, image) = with_busybox("events")?;
    let engine = fixture.engine();
    let mut events = engine.events(EventQuery::default())?;
    let id = fixture.start(&image, &["sh", "-c", "exit 2"])?;
    fixture.exit_code(&id)?;
    fixture.run(engine.remove_container(&id, RemoveContainer::default()))?;
    let told = fixture.run(async {
        let mut told = Vec::new();
        while told.len() < 6 {
            let event = events.next().await.expect("events go on");
            if event.kind == EventType::Network {
                assert_eq!(event.actor.attributes["container"], id);
                told.push((format!("network {}", event.action), String::new()));
                continue;
            }
            assert_eq!((event.actor.id.as_str(), event.actor.attributes["image"].as_str()), (&*id, &*image));
            told.push((event.action.clone(), event.actor.attributes.get("exitCode").cloned().unwrap_or_default()));
        }
        Ok(told)
    })?;
    let told: Vec<(&str, &str)> = told.iter().map(|(action, code)| (action.as_str(), code.as_str())).collect();
    let (connect, disconnect) = (("network connect", ""), ("network disconnect", ""));
    assert_eq!(told, [("create", ""), connect, ("start", ""), ("die", "2"), disconnect, ("destroy", "")]);
    Ok(())
}

fn a_log_that_is_followed_ends_with_the_container() -> Result<()> {
    let (fixture, image) = with_busybox("follow")?;
    let id = fixture.start(&image, &["sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.2; done"])?;
    assert_eq!(fixture.output(&id, OutputStream::Stdout, true)?, "1\n2\n3\n");
    Ok(())
}

fn an_image_in_use_is_not_deleted() -> Result<()> {
    let (fixture, image) = with_busybox("inuse")?;
    let engine = fixture.engine();
    let id = fixture.run(engine.create_container(request(&image, &["true"])))?.id;
    let refused = fixture.run(engine.remove_image(&image, Default::default())).expect_err("a container uses it");
    let short = &id[..12];
    assert!(refused.to_string().starts_with("conflict: unable to remove repository reference"), "{refused}");
    assert!(refused.to_string().contains(&format!("(must force) - container {short} is using")), "{refused}");
    fixture.run(engine.start_container(&id))?;
    assert_eq!(fixture.exit_code(&id)?, 0);
    Ok(())
}

fn what_a_container_wrote_is_there_at_its_next_start() -> Result<()> {
    let (fixture, image) = with_busybox("again")?;
    let engine = fixture.engine();
    let id = fixture.start(&image, &["sh", "-c", "test -e /mark && exit 9; echo x > /mark; rm /etc/group"])?;
    assert_eq!(fixture.exit_code(&id)?, 0);
    fixture.run(engine.start_container(&id))?;
    assert_eq!(fixture.exit_code(&id)?, 9);
    assert_eq!(status(&fixture, &id)?, ContainerStatus::Exited);
    // The image's layer has not changed.
    let layer = fixture.run(engine.image(&image))?.graph_driver.upper_dir.context("no layer")?;
    assert!(std::path::Path::new(&layer).join("etc/group").exists());
    Ok(())
}

fn an_export_has_what_the_container_sees_whether_it_runs_or_not() -> Result<()> {
    let (fixture, image) = with_busybox("export")?;
    let engine = fixture.engine();
    let script = "echo text > /file; ln /file /other; ln -s file /link; mkfifo /pipe; chmod 4755 /file; rm /etc/group; \
                  echo ready; sleep 1000";
    let id = fixture.start(&image, &["sh", "-c", script])?;
    let begun = std::time::Instant::now();
    while fixture.output(&id, OutputStream::Stdout, false)? != "ready\n" {
        assert!(begun.elapsed() < LIMIT, "the container is never ready");
        std::thread::sleep(Duration::from_millis(10));
    }
    for runs in [true, false] {
        if !runs {
            fixture.run(engine.kill_container(&id, "KILL"))?;
        }
        let archive = fixture.run(async {
            let mut export = engine.export_container(&id).await?;
            let mut archive = Vec::new();
            while let Some(piece) = export.next().await {
                archive.extend_from_slice(&piece?);
            }
            Ok(archive)
        })?;
        let unpacked = fixture.scratch.join(format!("unpacked-{runs}"));
        std::fs::create_dir(&unpacked)?;
        let mut tar = std::process::Command::new("tar");
        tar.arg("-x").arg("-p").arg("-C").arg(&unpacked);
        baleen_tests::command::run(&mut tar, Some(&archive), LIMIT)?.ok()?;
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        assert_eq!(std::fs::read_to_string(unpacked.join("other"))?, "text\n");
        let (file, other) = (unpacked.join("file").metadata()?, unpacked.join("other").metadata()?);
        assert_eq!((file.ino(), file.mode() & 0o7777), (other.ino(), 0o4755));
        assert_eq!(std::fs::read_link(unpacked.join("link"))?, std::path::Path::new("file"));
        assert!(unpacked.join("pipe").symlink_metadata()?.file_type().is_fifo());
        assert!(unpacked.join("bin/busybox").exists() && !unpacked.join("etc/group").exists());
        // What is mounted inside is no part of it.
        assert_eq!(std::fs::read_dir(unpacked.join("proc"))?.count(), 0);
    }
    assert_eq!(mounts_below(fixture.scratch.path()), Vec::<std::path::PathBuf>::new());
    Ok(())
}

fn a_container_whose_shim_is_killed_ends_and_leaves_no_process() -> Result<()> {
    let (fixture, image) = with_busybox("shim")?;
    let id = fixture.start(&image, &["sleep", "1000"])?;
    let pid = fixture.run(fixture.engine().container(&id, false))?.state.pid;
    let record = std::fs::read(fixture.scratch.join(format!("run/containers/{id}/state.json")))?;
    let record: serde_json::Value = serde_json::from_slice(&record)?;
    let shim = record["shim_pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).context("no shim")?;
    let shim = rustix::process::Pid::from_raw(shim).context("no shim")?;
    rustix::process::kill_process(shim, rustix::process::Signal::KILL)?;
    assert_eq!(fixture.exit_code(&id)?, 137);
    // Only its entry in the process table may be left until it is reaped.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    assert!(status.is_empty() || status.contains("State:\tZ") || status.contains("State:\tX"), "{status}");
    assert_eq!(mounts_below(fixture.scratch.path()), Vec::<std::path::PathBuf>::new());
    fixture.run(fixture.engine().start_container(&id))?;
    Ok(())
}

fn what_a_cut_removal_left_in_the_exec_root_goes_at_the_next_start() -> Result<()> {
    let mut fixture = Fixture::new("left")?;
    fixture.abandon()?;
    let gone = "7".repeat(64);
    for folder in ["containers", "etc"] {
        let folder = fixture.scratch.join("run").join(folder).join(&gone);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("exit.json"), "{}")?;
    }
    fixture.open()?;
    for folder in ["containers", "etc"] {
        assert!(!fixture.scratch.join("run").join(folder).join(&gone).exists());
    }
    Ok(())
}
