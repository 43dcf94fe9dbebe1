//! What a container is told: the request's configuration merged with the image's, by Docker's rules.

use baleen_oci::RunConfig;

use super::config::{ContainerConfig, HealthConfig};
use crate::error::EngineError;

/// Fills what the request leaves open from the image.
///
/// # Errors
/// `NoCommand`; `InvalidParameter` for a working directory that is not absolute.
pub(crate) fn merge(config: &mut ContainerConfig, image: &RunConfig) -> Result<(), EngineError> {
    if config.user.is_empty() {
        config.user.clone_from(&image.user);
    }
    for (port, value) in &image.exposed_ports {
        config.exposed_ports.entry(port.clone()).or_insert(*value);
    }
    merge_env(&mut config.env, &image.env);
    for (key, value) in image.labels.iter().flatten() {
        config.labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    merge_command(config, image);
    if let Some(probe) = &image.healthcheck {
        merge_healthcheck(&mut config.healthcheck, probe);
    }
    if config.working_dir.is_empty() {
        config.working_dir.clone_from(&image.working_dir);
    }
    for (path, value) in image.volumes.iter().flatten() {
        config.volumes.get_or_insert_default().entry(path.clone()).or_insert(*value);
    }
    config.volumes = config.volumes.take().filter(|volumes| !volumes.is_empty());
    if config.stop_signal.is_empty() {
        config.stop_signal.clone_from(&image.stop_signal);
    }
    config.shell = config.shell.take().or_else(|| image.shell.clone());
    config.on_build = config.on_build.take().or_else(|| image.on_build.clone());
    check(config)
}

fn check(config: &mut ContainerConfig) -> Result<(), EngineError> {
    let is_reset = config.entrypoint.as_ref().is_some_and(|words| words.len() == 1 && words[0].is_empty());
    if is_reset {
        config.entrypoint = None;
    }
    if command(config).is_empty() {
        return Err(EngineError::NoCommand);
    }
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        let path = &config.working_dir;
        return Err(EngineError::invalid(format!(
            "the working directory '{path}' is invalid, it needs to be an absolute path"
        )));
    }
    if !config.working_dir.is_empty() {
        let mut parts: Vec<&str> = Vec::new();
        for part in config.working_dir.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        config.working_dir = format!("/{}", parts.join("/"));
    }
    Ok(())
}

/// Entry point and arguments, joined.
pub(crate) fn command(config: &ContainerConfig) -> Vec<String> {
    config.entrypoint.iter().flatten().chain(config.cmd.iter().flatten()).cloned().collect()
}

/// The environment of the program: `K` alone removes `K`; the last of several wins.
pub(crate) fn environment(config: &ContainerConfig) -> Vec<String> {
    let mut result: Vec<String> = Vec::new();
    for entry in &config.env {
        let key = name_of(entry);
        let place = result.iter().position(|known| name_of(known) == key);
        match (entry.contains('='), place) {
            (true, Some(place)) => result[place].clone_from(entry),
            (true, None) => result.push(entry.clone()),
            (false, Some(place)) => drop(result.remove(place)),
            (false, None) => {}
        }
    }
    result
}

fn name_of(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(name, _)| name)
}

fn merge_env(own: &mut Vec<String>, image: &[String]) {
    let missing: Vec<String> =
        image.iter().filter(|entry| !own.iter().any(|known| name_of(known) == name_of(entry))).cloned().collect();
    own.extend(missing);
}

/// The image's arguments belong to its entry point: a request that names another one gets none of them.
fn merge_command(config: &mut ContainerConfig, image: &RunConfig) {
    let has_entrypoint = config.entrypoint.as_ref().is_some_and(|words| !words.is_empty());
    if has_entrypoint {
        return;
    }
    if config.cmd.as_ref().is_none_or(Vec::is_empty) {
        config.cmd.clone_from(&image.cmd);
    }
    if config.entrypoint.is_none() {
        config.entrypoint.clone_from(&image.entrypoint);
    }
}

fn merge_healthcheck(own: &mut Option<HealthConfig>, image: &HealthConfig) {
    let Some(probe) = own else {
        *own = Some(image.clone());
        return;
    };
    if probe.test.is_empty() {
        probe.test.clone_from(&image.test);
    }
    let fields = [
        (&mut probe.interval, image.interval),
        (&mut probe.timeout, image.timeout),
        (&mut probe.start_period, image.start_period),
        (&mut probe.start_interval, image.start_interval),
        (&mut probe.retries, image.retries),
    ];
    for (field, inherited) in fields {
        if *field == 0 {
            *field = inherited;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn image() -> RunConfig {
        RunConfig {
            cmd: Some(words(&["serve", "--all"])),
            entrypoint: Some(words(&["/entry"])),
            env: words(&["PATH=/bin", "MODE=image"]),
            user: "1000".to_owned(),
            working_dir: "/srv".to_owned(),
            ..RunConfig::default()
        }
    }

    fn merged(entrypoint: Option<&[&str]>, cmd: Option<&[&str]>) -> Result<Vec<String>, EngineError> {
        let mut config =
            ContainerConfig { entrypoint: entrypoint.map(words), cmd: cmd.map(words), ..ContainerConfig::default() };
        merge(&mut config, &image())?;
        Ok(command(&config))
    }

    #[test]
    fn entry_point_and_arguments_combine_as_dockers_do() {
        assert_eq!(merged(None, None).unwrap(), words(&["/entry", "serve", "--all"]));
        assert_eq!(merged(None, Some(&["x"])).unwrap(), words(&["/entry", "x"]));
        assert_eq!(merged(Some(&["/other"]), None).unwrap(), words(&["/other"]));
        assert_eq!(merged(Some(&[""]), Some(&["x"])).unwrap(), words(&["x"]));
        assert_eq!(merged(Some(&[]), Some(&["x"])).unwrap(), words(&["x"]));
        assert!(matches!(merged(Some(&[""]), None), Err(EngineError::NoCommand)));
    }

    #[test]
    fn the_request_wins_by_name_and_a_bare_name_drops_the_variable() {
        let mut config =
            ContainerConfig { env: words(&["MODE=mine", "PATH", "NEW=1", "NEW=2"]), ..ContainerConfig::default() };
        merge(&mut config, &image()).unwrap();
        assert_eq!(config.env, words(&["MODE=mine", "PATH", "NEW=1", "NEW=2"]));
        assert_eq!(environment(&config), words(&["MODE=mine", "NEW=2"]));
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("1000", "/srv"));
    }

    #[test]
    fn a_relative_working_directory_is_refused() {
        let mut config = ContainerConfig { working_dir: "srv".to_owned(), ..ContainerConfig::default() };
        assert!(matches!(merge(&mut config, &image()), Err(EngineError::InvalidParameter { .. })));
    }

    #[test]
    fn nothing_to_run_is_an_error_of_its_own() {
        let error = merge(&mut ContainerConfig::default(), &RunConfig::default()).unwrap_err();
        assert_eq!(error.to_string(), "no command specified");
    }
}
