//! `POST /containers/create`: the body, read as clients write it, for the engine's verb.

use std::collections::BTreeMap;

use baleen_engine::{ContainerConfig, CreateRequest, HostConfig};
use serde_json::json;

use super::input::{self, Value};
use super::{Answer, ApiError, Call, images};

/// Creates a container.
pub(crate) async fn create(mut call: Call) -> Answer {
    let empty = || ApiError::invalid("config cannot be empty in order to create a container");
    let body = call.json().await?.filter(|body| *body != Value::Null).ok_or_else(empty)?;
    let mut request = read(body)?;
    request.name = call.query.text("name").map(|name| name.trim_start_matches('/').to_owned());
    request.platform = images::platform(&call)?;
    let mut endpoints: Vec<&str> = request.endpoints.keys().map(String::as_str).collect();
    if call.asked.before(44) && endpoints.len() > 1 {
        endpoints.sort_unstable();
        return Err(ApiError::invalid(format!(
            "Container cannot be created with multiple network endpoints: {}",
            endpoints.join(", ")
        )));
    }
    let created = call.engine().create_container(request).await?;
    super::json(201, &json!({ "Id": created.id, "Warnings": created.warnings }))
}

const BIND_OPTIONS: [&str; 5] =
    ["Propagation", "NonRecursive", "CreateMountpoint", "ReadOnlyNonRecursive", "ReadOnlyForceRecursive"];

/// Gives the keys of a mount's options the spelling that the engine looks for: one in another case must not be ignored.
fn respell(options: &mut Option<serde_json::Value>, known: &[&str]) {
    let Some(serde_json::Value::Object(fields)) = options else { return };
    let respelled = std::mem::take(fields).into_iter().map(|(key, value)| {
        let spelling = known.iter().find(|known| known.eq_ignore_ascii_case(&key));
        (spelling.map_or(key, |known| (*known).to_owned()), value)
    });
    *fields = respelled.collect();
}

/// Reads the body: the container's own fields at the top, the host's and the networks' below.
fn read(mut body: Value) -> Result<CreateRequest, ApiError> {
    for key in ["Cmd", "Entrypoint", "Shell"] {
        body.listed(key);
    }
    let mut host_config: HostConfig = input::decode(body.take("HostConfig"))?;
    for mount in host_config.mounts.iter_mut().flatten() {
        respell(&mut mount.bind_options, &BIND_OPTIONS);
        respell(&mut mount.volume_options, &["NoCopy", "Labels", "DriverConfig", "Subpath"]);
        respell(&mut mount.tmpfs_options, &["SizeBytes", "Mode", "Options"]);
    }
    let mut networking = body.take("NetworkingConfig");
    let endpoints: BTreeMap<String, Value> = input::decode(networking.take("EndpointsConfig"))?;
    let config: ContainerConfig = input::decode(body)?;
    let endpoints = endpoints.into_iter().map(|(name, settings)| (name, settings.without_nulls())).collect();
    Ok(CreateRequest { name: None, platform: None, config, host_config, endpoints })
}

impl Value {
    /// The value as JSON, without its nulls (they are absent).
    fn without_nulls(self) -> serde_json::Value {
        match self {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => value.into(),
            Value::Number(number) => number.into(),
            Value::String(text) => text.into(),
            Value::List(items) => items.into_iter().map(Value::without_nulls).collect(),
            Value::Map(pairs) => {
                let pairs = pairs.into_iter().filter(|(_, value)| *value != Value::Null);
                pairs.map(|(key, value)| (key, value.without_nulls())).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Result<CreateRequest, ApiError> {
        read(input::parse(text.as_bytes())?)
    }

    #[test]
    fn a_body_of_the_docker_cli_is_read() {
        let text = r#"{"Hostname":"","Domainname":"","User":"","AttachStdin":false,"AttachStdout":true,"AttachStderr":true,
            "Tty":false,"OpenStdin":false,"StdinOnce":false,"Env":null,"Cmd":["sh","-c","true"],"Image":"busybox","Volumes":{},
            "WorkingDir":"","Entrypoint":null,"OnBuild":null,"Labels":{},"HostConfig":{"Binds":null,"ContainerIDFile":"",
            "LogConfig":{"Type":"","Config":{}},"NetworkMode":"none","PortBindings":{},"RestartPolicy":{"Name":"no",
            "MaximumRetryCount":0},"AutoRemove":true,"ConsoleSize":[24,80],"MemorySwappiness":-1,"OomKillDisable":false,
            "PidsLimit":0,"Ulimits":[],"BlkioWeight":0,"MaskedPaths":null},
            "NetworkingConfig":{"EndpointsConfig":{"none":{"IPAMConfig":null,"Links":null,"Aliases":null,"MacAddress":""}}}}"#;
        let request = request(text).expect("well-formed");
        assert_eq!(request.config.cmd, Some(vec!["sh".into(), "-c".into(), "true".into()]));
        assert_eq!((request.config.image.as_str(), request.config.entrypoint), ("busybox", None));
        assert!(request.host_config.auto_remove);
        assert_eq!(request.host_config.network_mode, "none");
        assert_eq!(request.host_config.console_size, [24, 80]);
        assert_eq!(request.host_config.memory_swappiness, Some(-1));
        assert_eq!(request.host_config.masked_paths, None);
        assert_eq!(request.endpoints["none"], json!({ "MacAddress": "" }));
    }

    #[test]
    fn a_body_of_loose_spelling_is_read_the_same() {
        let request = request(
            r#"{"image":"x","cmd":"true","entrypoint":"/bin/sh","hostconfig":{"networkmode":"host","restartpolicy":{},
            "portbindings":{"80/tcp":[{"hostport":"8080"}],"81/tcp":null},"maskedPaths":[]},"networkingConfig":null}"#,
        )
        .expect("well-formed");
        assert_eq!(request.config.cmd, Some(vec!["true".to_owned()]));
        assert_eq!(request.config.entrypoint, Some(vec!["/bin/sh".to_owned()]));
        assert_eq!(request.host_config.network_mode, "host");
        assert_eq!(request.host_config.port_bindings["80/tcp"].as_ref().expect("given")[0].host_port, "8080");
        assert_eq!(request.host_config.masked_paths, Some(vec![]));
    }

    #[test]
    fn options_of_mounts_are_found_in_any_spelling_and_without_nulls() {
        let request = request(
            r#"{"HostConfig":{"PortBindings":{"81/tcp":null},"Mounts":[{"type":"bind","bindOptions":
            {"readonlyforcerecursive":true,"Propagation":null}},{"Type":"tmpfs","TmpfsOptions":{"sizebytes":7}}]}}"#,
        )
        .expect("well-formed");
        let mounts = request.host_config.mounts.expect("given");
        assert_eq!(mounts[0].bind_options, Some(json!({ "ReadOnlyForceRecursive": true })));
        assert_eq!(mounts[1].tmpfs_options, Some(json!({ "SizeBytes": 7 })));
        assert!(request.host_config.port_bindings.contains_key("81/tcp"));
    }

    #[test]
    fn a_field_of_the_wrong_type_is_refused_wherever_it_stands() {
        for text in [
            r#"{"Image":1}"#,
            r#"{"HostConfig":[]}"#,
            r#"{"HostConfig":{"Memory":"1g"}}"#,
            r#"{"HostConfig":{"Memory":1.5}}"#,
            r#"{"HostConfig":{"BlkioWeight":70000}}"#,
            r#"{"NetworkingConfig":{"EndpointsConfig":[]}}"#,
            "[]",
        ] {
            assert_eq!(request(text).expect_err(text).status, 400, "{text}");
        }
    }
}
