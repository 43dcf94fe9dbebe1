//! Manifests, indexes and configurations, from good registries and bad ones; mirrors.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use baleen_oci::{Digest, DocumentError, Platform, Reference};
use baleen_registry::{Client, ClientConfig, Credentials, Missing, RegistryError, ResolvedImage, Secret};
use support::run;
use support::stub::{
    CONFIG_TYPE, Ending, Image, LAYER_TYPE, MANIFEST_TYPE, Reply, Stub, bytes, descriptor, quick_config,
};

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

async fn resolve_as(stub: &Stub, tail: &str, config: ClientConfig) -> Result<ResolvedImage, RegistryError> {
    let reference = Reference::parse(&format!("127.0.0.1:{}/app{tail}", stub.port())).unwrap();
    let client = Client::new(config).repository(reference.repository(), Credentials::Anonymous);
    client.resolve(&reference, &Platform::host()).await
}

async fn resolve(stub: &Stub, tail: &str) -> Result<ResolvedImage, RegistryError> {
    resolve_as(stub, tail, quick_config()).await
}

fn missing() -> Reply {
    Reply::error(404, "MANIFEST_UNKNOWN", "manifest unknown")
}

fn json(descriptor: &baleen_oci::Descriptor) -> String {
    serde_json::to_string(descriptor).unwrap()
}

#[test]
fn an_index_leads_to_the_image_for_the_platform() {
    run(async {
        let (image, other) = (Image::new(1), Image::new(2));
        let entry = |image: &Image, platform: Platform| {
            let mut entry = descriptor(MANIFEST_TYPE, image.manifest.as_bytes());
            entry.platform = Some(platform);
            json(&entry)
        };
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{},{}]}}"#,
            entry(&other, Platform::new("linux", "s390x", "")),
            entry(&image, Platform::host())
        );
        let (served, served_image) = (index.clone(), image.clone());
        let stub = Stub::start(move |asked| match asked.path.as_str() {
            "/v2/app/manifests/1" => Reply::document(INDEX_TYPE, served.clone()),
            _ => served_image.reply(asked, "app", "none").unwrap_or_else(missing),
        })
        .await;
        let resolved = resolve(&stub, ":1").await.unwrap();
        assert_eq!(resolved.digest, Digest::sha256_of(index.as_bytes()), "the tag stands for the index");
        assert_eq!(resolved.indexes[0].bytes, index.as_bytes());
        assert_eq!(resolved.manifest_document.bytes, image.manifest.as_bytes());
        assert_eq!(resolved.config.raw(), image.config.as_bytes());
        let accept = stub.asked()[0].header("accept").unwrap().to_owned();
        assert_eq!(accept.split(", ").count(), 4, "{accept}");
        let reference = Reference::parse(&format!("127.0.0.1:{}/app:1", stub.port())).unwrap();
        let client = Client::new(quick_config()).repository(reference.repository(), Credentials::Anonymous);
        let error = client.resolve(&reference, &Platform::new("linux", "riscv64", "")).await.unwrap_err();
        assert!(matches!(error, RegistryError::Document { source: DocumentError::NoMatchingPlatform { .. }, .. }));
        assert_eq!(error.docker_status(), 404);
    });
}

#[test]
fn an_index_of_itself_ends() {
    run(async {
        // Its digest cannot be known beforehand, so the nested ones are wrong: each level is another.
        let mut body = r#"{"schemaVersion":2,"manifests":[]}"#.to_owned();
        let mut levels = Vec::new();
        for _ in 0..7 {
            levels.push(body.clone());
            let mut entry = descriptor(INDEX_TYPE, body.as_bytes());
            entry.platform = Some(Platform::host());
            body = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, json(&entry));
        }
        let stub = Stub::start(move |asked| {
            let named =
                levels.iter().find(|level| asked.path.ends_with(&Digest::sha256_of(level.as_bytes()).to_string()));
            Reply::document(INDEX_TYPE, named.unwrap_or(&body).clone())
        })
        .await;
        let error = resolve(&stub, ":1").await.unwrap_err();
        assert!(matches!(error, RegistryError::Document { source: DocumentError::Limit { .. }, .. }), "{error}");
        assert_eq!(stub.asked().len(), 5);
    });
}

#[test]
fn bytes_that_the_digest_does_not_name_are_refused() {
    run(async {
        let image = Image::new(1);
        let lied = image.manifest.replace("schemaVersion\":2", "schemaVersion\": 2");
        let right = Digest::sha256_of(image.manifest.as_bytes());
        let stub = Stub::start(move |_| {
            Reply::document(MANIFEST_TYPE, lied.clone()).header("Docker-Content-Digest", right.to_string())
        })
        .await;
        let error = resolve(&stub, &format!("@{right}")).await.unwrap_err();
        assert!(matches!(&error, RegistryError::DigestMismatch { expected, .. } if **expected == right), "{error}");
        assert_eq!(stub.asked().len(), 1, "a lie is not asked for again");
    });
}

#[test]
fn the_digest_of_a_tag_is_that_of_the_bytes_and_not_of_a_header() {
    run(async {
        let image = Image::new(1);
        let served = image.clone();
        let stub = Stub::start(move |asked| {
            let reply = served.reply(asked, "app", "1").unwrap_or_else(missing);
            reply.header("Docker-Content-Digest", Digest::sha256_of(b"other").to_string())
        })
        .await;
        assert_eq!(resolve(&stub, ":1").await.unwrap().digest, Digest::sha256_of(image.manifest.as_bytes()));
    });
}

#[test]
fn a_configuration_that_was_swapped_is_refused() {
    run(async {
        let image = Image::new(1);
        let stub = Stub::start(move |asked| match asked.path.contains("/blobs/") {
            true => Reply::new(200, image.config.replace("linux", "xinul")),
            false => image.reply(asked, "app", "1").unwrap_or_else(missing),
        })
        .await;
        let error = resolve(&stub, ":1").await.unwrap_err();
        assert!(matches!(error, RegistryError::DigestMismatch { .. }), "{error}");
    });
}

#[test]
fn a_manifest_and_a_configuration_that_do_not_fit_are_refused() {
    run(async {
        let mut image = Image::new(1);
        let extra = json(&descriptor(LAYER_TYPE, b"extra"));
        image.manifest = image.manifest.replace("\"layers\":[", &format!("\"layers\":[{extra},"));
        let stub = Stub::start(move |asked| image.reply(asked, "app", "1").unwrap_or_else(missing)).await;
        let error = resolve(&stub, ":1").await.unwrap_err();
        assert!(matches!(error, RegistryError::LayerCount { layers: 2, diff_ids: 1, .. }), "{error}");
    });
}

#[test]
fn a_manifest_without_end_and_one_that_is_too_large_are_refused() {
    run(async {
        let endless = Stub::start(|_| Reply::document(MANIFEST_TYPE, " ".repeat(9999)).ending(Ending::Endless)).await;
        let error = resolve(&endless, ":1").await.unwrap_err();
        assert!(matches!(error, RegistryError::TooLarge { bytes_max: 4_194_304, .. }), "{error}");
        let large = Stub::start(|_| Reply::document(MANIFEST_TYPE, vec![b' '; 100_000_000])).await;
        let error = resolve(&large, ":1").await.unwrap_err();
        assert!(matches!(error, RegistryError::TooLarge { .. }), "{error}");
    });
}

#[test]
fn an_error_without_end_is_cut_off_and_shown_clean() {
    run(async {
        let endless = Stub::start(|_| Reply::new(400, "x".repeat(9999)).ending(Ending::Endless)).await;
        let error = resolve(&endless, ":1").await.unwrap_err();
        assert!(matches!(error, RegistryError::Server { status: 400, .. }), "{error}");
        let rude =
            Stub::start(|_| Reply::error(418, "TEAPOT", &format!("\\u001b[31mred\\n{}", "y".repeat(5000)))).await;
        let text = resolve(&rude, ":1").await.unwrap_err().to_string();
        assert!(text.contains("teapot: [31mred yyy") && text.len() < 1200, "{text}");
        assert!(!text.contains(char::is_control));
    });
}

#[test]
fn a_head_without_end_is_refused() {
    run(async {
        let long = Stub::start(|_| Reply::document(MANIFEST_TYPE, "{}").header("X-Long", "x".repeat(200 << 10))).await;
        let error = resolve(&long, ":1").await.unwrap_err();
        assert!(matches!(error, RegistryError::Protocol { .. }), "{error:?}");
        let many = Stub::start(|_| {
            (0..1000)
                .fold(Reply::document(MANIFEST_TYPE, "{}"), |reply, number| reply.header("X-Many", number.to_string()))
        })
        .await;
        let error = resolve(&many, ":1").await.unwrap_err();
        assert!(matches!(error, RegistryError::Protocol { .. }), "{error:?}");
    });
}

#[test]
fn unknown_types_are_named() {
    run(async {
        let html = Stub::start(|_| Reply::document("text/html; charset=utf-8", "<html>")).await;
        let error = resolve(&html, ":1").await.unwrap_err();
        assert!(matches!(error, RegistryError::Document { .. }), "{error}");
        let image = Image::new(1);
        let chart = image.manifest.replace(CONFIG_TYPE, "application/vnd.cncf.helm.config.v1+json");
        let stub = Stub::start(move |_| Reply::document(MANIFEST_TYPE, chart.clone())).await;
        let error = resolve(&stub, ":1").await.unwrap_err();
        assert!(matches!(error, RegistryError::Document { source: DocumentError::NotAnImage { .. }, .. }), "{error}");
        let packed = Stub::start(|_| Reply::document(MANIFEST_TYPE, "x").header("Content-Encoding", "gzip")).await;
        let error = resolve(&packed, ":1").await.unwrap_err();
        assert!(matches!(error, RegistryError::Protocol { .. }), "{error}");
    });
}

#[test]
fn what_is_not_there_is_told_in_docker_s_words() {
    run(async {
        let stub = Stub::start(|_| missing()).await;
        let text = resolve(&stub, ":1").await.unwrap_err().to_string();
        let name = format!("127.0.0.1:{}/app", stub.port());
        assert_eq!(text, format!("manifest for {name}:1 not found: manifest unknown: manifest unknown"));
        let stub = Stub::start(|_| Reply::error(404, "NAME_UNKNOWN", "repository name not known to registry")).await;
        let error = resolve(&stub, ":1").await.unwrap_err();
        assert!(matches!(error, RegistryError::NotFound { missing: Missing::Repository, .. }), "{error}");
    });
}

#[test]
fn a_registry_that_is_not_there_is_told_by_its_address() {
    run(async {
        let stub = Stub::start(|_| missing()).await;
        let address = stub.address;
        drop(stub);
        // The stub's task, and with it the socket, goes when it next runs.
        tokio::task::yield_now().await;
        let reference = Reference::parse(&format!("{address}/app:1")).unwrap();
        let client = Client::new(quick_config()).repository(reference.repository(), Credentials::Anonymous);
        let error = client.document(&reference).await.unwrap_err();
        assert!(matches!(&error, RegistryError::Connect { host, .. } if *host == address.to_string()), "{error}");
    });
}

#[test]
fn a_document_is_asked_for_again_when_the_connection_breaks() {
    run(async {
        let image = Image::new(1);
        let stub = Stub::start(move |asked| {
            let reply = image.reply(asked, "app", "1").unwrap_or_else(missing);
            if asked.earlier == 0 { reply.ending(Ending::CutAfter(10)) } else { reply }
        })
        .await;
        resolve(&stub, ":1").await.unwrap();
    });
}

#[test]
fn a_silent_registry_is_given_up() {
    run(async {
        let stub = Stub::start(|_| Reply::document(MANIFEST_TYPE, "{}").ending(Ending::StallAfter(1))).await;
        let mut config = quick_config();
        config.timeouts.idle = Duration::from_millis(200);
        let error = resolve_as(&stub, ":1", config).await.unwrap_err();
        assert!(matches!(error, RegistryError::Timeout { .. }), "{error}");
    });
}

#[test]
fn tags_come_page_by_page_and_end() {
    run(async {
        let stub = Stub::start(|asked| match asked.path.as_str() {
            "/v2/app/tags/list" => Reply::new(200, r#"{"name":"app","tags":["a","b"]}"#)
                .header("Link", "</v2/app/tags/list?last=b&n=2>; rel=\"next\""),
            "/v2/app/tags/list?last=b&n=2" => Reply::new(200, r#"{"tags":["c"]}"#),
            _ => missing(),
        })
        .await;
        let reference = Reference::parse(&format!("127.0.0.1:{}/app", stub.port())).unwrap();
        let client = Client::new(quick_config()).repository(reference.repository(), Credentials::Anonymous);
        assert_eq!(client.tags().await.unwrap(), ["a", "b", "c"]);
        let endless = Stub::start(|asked| {
            let next = format!("</v2/app/tags/list?n={}>; rel=\"next\"", asked.path.len());
            Reply::new(200, r#"{"tags":["a","b","c","d","e","f","g","h"]}"#).header(
                "Link",
                if asked.path.contains("n=20") { next } else { "</v2/app/tags/list?n=20>; rel=next".into() },
            )
        })
        .await;
        let reference = Reference::parse(&format!("127.0.0.1:{}/app", endless.port())).unwrap();
        let client = Client::new(quick_config()).repository(reference.repository(), Credentials::Anonymous);
        assert!(matches!(client.tags().await, Err(RegistryError::Protocol { .. })));
    });
}

/// Pulls from `docker.io` with these mirrors, whose real registry must not be reached in a test.
async fn pull_with_mirrors(mirrors: &[&Stub], prefix: &str) -> Result<Vec<u8>, RegistryError> {
    let mut config = quick_config();
    config.mirrors =
        mirrors.iter().map(|stub| format!("http://127.0.0.1:{}{prefix}", stub.port()).parse().unwrap()).collect();
    // No name leads anywhere: whoever goes past the mirrors gets an error and reaches nobody.
    config.hosts_file = "/nonexistent".into();
    config.resolv_conf = "/nonexistent".into();
    let reference = Reference::parse("app:1").unwrap();
    let credentials = Credentials::Basic { username: "user".into(), password: Secret::new("pass") };
    let client = Client::new(config).repository(reference.repository(), credentials);
    let image = client.resolve(&reference, &Platform::host()).await?;
    client.bytes(&image.manifest.layers[0], 1 << 20).await
}

#[test]
fn a_mirror_serves_what_docker_io_has_and_sees_no_credential() {
    run(async {
        let image = Image::new(1);
        let served = image.clone();
        let mirror = Stub::start(move |asked| served.reply(asked, "library/app", "1").unwrap_or_else(missing)).await;
        let empty = Stub::start(|_| missing()).await;
        assert_eq!(pull_with_mirrors(&[&empty, &mirror], "").await.unwrap(), image.layer, "the second mirror has it");
        assert_eq!(empty.asked().len(), 1, "blobs are asked for where the manifest was");
        let demanding = Stub::start(|_| Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"r\"")).await;
        assert_eq!(pull_with_mirrors(&[&demanding, &mirror], "").await.unwrap(), image.layer);
        for stub in [&mirror, &empty, &demanding] {
            assert!(stub.asked().iter().all(|asked| asked.header("authorization").is_none()));
        }
    });
}

#[test]
fn a_mirror_that_breaks_in_the_middle_of_a_layer_is_left_for_the_next() {
    run(async {
        let image = Image::new(1);
        let (first_image, second_image) = (image.clone(), image.clone());
        let is_gone = AtomicBool::new(false);
        let first = Stub::start(move |asked| {
            let is_layer = asked.path.ends_with(&Digest::sha256_of(&first_image.layer).to_string());
            match is_layer {
                true if is_gone.swap(true, Ordering::Relaxed) => Reply::error(404, "BLOB_UNKNOWN", "gone"),
                true => Reply::new(200, first_image.layer.clone()).ending(Ending::CutAfter(4000)),
                false => first_image.reply(asked, "library/app", "1").unwrap_or_else(missing),
            }
        })
        .await;
        let second =
            Stub::start(move |asked| second_image.reply(asked, "library/app", "1").unwrap_or_else(missing)).await;
        assert_eq!(pull_with_mirrors(&[&first, &second], "").await.unwrap(), image.layer);
        assert_eq!(second.asked()[0].range_start(), Some(4000), "and it goes on at the same byte");
    });
}

#[test]
fn a_mirror_may_live_below_a_path() {
    run(async {
        let image = Image::new(1);
        let served = image.clone();
        let mirror = Stub::start(move |asked| {
            let mut inner = asked.clone();
            inner.path = asked.path.strip_prefix("/docker/hub").unwrap_or("").to_owned();
            served.reply(&inner, "library/app", "1").unwrap_or_else(missing)
        })
        .await;
        assert_eq!(pull_with_mirrors(&[&mirror], "/docker/hub/").await.unwrap(), image.layer);
    });
}

#[test]
fn a_blob_that_is_too_large_to_be_kept_is_not_fetched() {
    run(async {
        let stub = Stub::start(|_| missing()).await;
        let reference = Reference::parse(&format!("127.0.0.1:{}/app", stub.port())).unwrap();
        let client = Client::new(quick_config()).repository(reference.repository(), Credentials::Anonymous);
        let error = client.bytes(&descriptor(LAYER_TYPE, &bytes(1001, 1)), 1000).await.unwrap_err();
        assert!(matches!(error, RegistryError::TooLarge { .. }), "{error}");
        assert!(stub.asked().is_empty());
    });
}
