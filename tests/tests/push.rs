//! Images to a registry through the unmodified `docker` client: push, login.

use std::fs;

use anyhow::{Context as _, Result};
use baleen_tests::archive::Entry;
use baleen_tests::command::succeed;
use baleen_tests::daemon::Daemon;
use baleen_tests::image::{Image, Layer};
use baleen_tests::needs_root;
use baleen_tests::random::Random;
use baleen_tests::registry::{Options, Registry};
use baleen_tests::scratch::Scratch;
use serde_json::Value;

/// An image whose first layer is larger than what is sent with one request.
fn image(random: &mut Random) -> Result<Image> {
    let large = Layer::of(&[Entry::file("large", random.bytes(6_000_000)), Entry::file("small", "text")])?;
    let small = Layer::of(&[Entry::folder("d"), Entry::file("d/f", random.bytes(100)), Entry::hardlink("d/g", "d/f")])?;
    Ok(Image::new(vec![large, small], &["/small"]))
}

fn digest_of(output: &str) -> Result<String> {
    let line = output.lines().find(|line| line.contains(": digest: sha256:")).context("no line tells the digest")?;
    Ok(line.split_whitespace().nth(2).context("no digest")?.to_owned())
}

#[test]
fn what_was_pulled_is_pushed_as_it_was_where_its_layers_are_and_anew_where_they_are_not() -> Result<()> {
    needs_root!("what_was_pulled_is_pushed_as_it_was_where_its_layers_are_and_anew_where_they_are_not");
    let scratch = Scratch::new("push")?;
    let (here, there) = (Registry::start(&scratch)?, Registry::start(&scratch)?);
    let image = image(&mut Random::new(3))?;
    let source = here.reference("lib/app:v1");
    image.push(&scratch, &source)?;
    let daemon = Daemon::start(&scratch)?;
    daemon.docker_ok(&["pull", "-q", &source])?;

    // The same registry, another repository: the layers are mounted, the manifest is the original.
    let beside = here.reference("other/app:v2");
    daemon.docker_ok(&["tag", &source, &beside])?;
    let output = daemon.docker_ok(&["push", &beside])?;
    let repository = here.reference("other/app");
    assert!(output.contains(&format!("The push refers to repository [{repository}]")), "{output}");
    assert_eq!(output.matches(": Mounted from lib/app").count(), 2, "{output}");
    assert_eq!(digest_of(&output)?, image.digest());

    // Another registry: the layers are compressed anew, and the image is the same by its ID.
    let away = there.reference("app:v1");
    daemon.docker_ok(&["tag", &source, &away])?;
    let output = daemon.docker_ok(&["push", &away])?;
    assert_eq!(output.matches(": Pushed").count(), 2, "{output}");
    for layer in &image.layers {
        assert!(output.contains(&format!("{}: Preparing", &layer.diff_id()[7..19])), "{output}");
    }
    let digest = digest_of(&output)?;
    let digests: Vec<String> =
        serde_json::from_str(&daemon.docker_ok(&["image", "inspect", "--format", "{{json .RepoDigests}}", &away])?)?;
    assert!(digests.contains(&format!("{}@{digest}", there.reference("app"))), "{digests:?}");

    let other = Daemon::prepare(&scratch, &scratch.join("other"));
    let mut other = other?;
    other.run()?;
    other.docker_ok(&["pull", "-q", &away])?;
    assert_eq!(other.docker_ok(&["image", "inspect", "--format", "{{.Id}}", &away])?, image.id());

    // Again, and by an engine that has pushed nothing yet: nothing is sent, and the digest stays.
    for daemon in [&daemon, &other] {
        let again = daemon.docker_ok(&["push", &away])?;
        assert_eq!(again.matches(": Layer already exists").count(), 2, "{again}");
        assert_eq!(digest_of(&again)?, digest);
    }
    // What was compressed is the same each time, so that another tag of another image finds it.
    let twin = there.reference("app:v2");
    daemon.docker_ok(&["tag", &away, &twin])?;
    let again = daemon.docker_ok(&["push", "-a", &there.reference("app")])?;
    assert_eq!(again.matches(": Layer already exists").count(), 4, "{again}");
    assert_eq!(again.matches(&format!("digest: {digest}")).count(), 2, "{again}");
    Ok(())
}

#[test]
fn a_push_of_what_is_not_here_is_refused_in_dockers_words() -> Result<()> {
    needs_root!("a_push_of_what_is_not_here_is_refused_in_dockers_words");
    let scratch = Scratch::new("push-none")?;
    let daemon = Daemon::start(&scratch)?;
    let refused = daemon.docker(&["push", "127.0.0.1:1/none:v1"])?;
    assert_ne!(refused.code, 0);
    let text = "An image does not exist locally with the tag: 127.0.0.1:1/none";
    assert!(refused.output().contains(text), "{}", refused.output());
    Ok(())
}

#[test]
fn a_login_and_a_push_are_refused_without_the_right_password() -> Result<()> {
    needs_root!("a_login_and_a_push_are_refused_without_the_right_password");
    let scratch = Scratch::new("login")?;
    let file = scratch.join("htpasswd");
    // The registry knows bcrypt alone. This is "user" with the password "hunter-7f3a".
    let script =
        "import crypt; print('user:' + crypt.crypt('hunter-7f3a', crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16)))";
    fs::write(&file, succeed("/usr/bin/python3", &["-W", "ignore", "-c", script])?.stdout())?;
    let registry = Registry::with(&scratch, &Options { htpasswd: Some(file), ..Options::default() })?;
    let (image, reference) = (image(&mut Random::new(4))?, registry.reference("app:v1"));
    image.push_from(&scratch, &reference, None, &["--dest-creds", "user:hunter-7f3a"])?;
    let daemon = Daemon::start(&scratch)?;
    let login = |password: &str| {
        let arguments = ["login", "-u", "user", "--password-stdin", &registry.address()];
        daemon.docker_with(&arguments, Some(password.as_bytes()))
    };
    let refused = login("wrong")?;
    assert_ne!(refused.code, 0);
    assert!(refused.output().contains("unauthorized"), "{}", refused.output());
    login("hunter-7f3a")?.ok()?;
    daemon.docker_ok(&["pull", "-q", &reference])?;
    let copy = registry.reference("copy:v1");
    daemon.docker_ok(&["tag", &reference, &copy])?;
    daemon.docker_ok(&["push", &copy])?;
    daemon.docker_ok(&["logout", &registry.address()])?;
    let denied = daemon.docker(&["push", &copy])?;
    assert_ne!(denied.code, 0, "{}", denied.output());
    assert!(!daemon.log().contains("hunter-7f3a"), "the daemon's log has the password");
    // An answer for programs.
    let body =
        serde_json::json!({ "username": "user", "password": "hunter-7f3a", "serverAddress": registry.address() });
    let answer: Value = daemon.api("POST", "/v1.41/auth", Some(&body), 200)?;
    assert_eq!(answer["Status"], "Login Succeeded");
    Ok(())
}
