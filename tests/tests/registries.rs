//! Registries that ask for something: TLS by a private authority, a password.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use baleen_tests::archive::Entry;
use baleen_tests::command::succeed;
use baleen_tests::daemon::Daemon;
use baleen_tests::image::{Image, Layer};
use baleen_tests::needs_root;
use baleen_tests::network::{ADDRESS, Network};
use baleen_tests::registry::{Options, Registry};
use baleen_tests::scratch::Scratch;

/// An authority of our own and a certificate by it for [`ADDRESS`]: `ca.crt`, `server.crt`, `server.key`.
fn certificates(scratch: &Scratch) -> Result<()> {
    let file = |name: &str| scratch.join(name).to_string_lossy().into_owned();
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let mut ca = vec!["req", "-x509", "-days", "2", "-subj", "/CN=test authority"];
    let (ca_key, ca_crt) = (file("ca.key"), file("ca.crt"));
    ca.extend(key);
    ca.extend(["-keyout", &ca_key, "-out", &ca_crt, "-addext", "basicConstraints=critical,CA:TRUE"]);
    succeed("openssl", &ca)?;
    let mut request = vec!["req", "-subj", "/CN=registry"];
    let (server_key, server_csr, server_crt) = (file("server.key"), file("server.csr"), file("server.crt"));
    request.extend(key);
    request.extend(["-keyout", &server_key, "-out", &server_csr]);
    succeed("openssl", &request)?;
    fs::write(scratch.join("extensions"), format!("subjectAltName=IP:{ADDRESS}\nbasicConstraints=CA:FALSE\n"))?;
    let extensions = file("extensions");
    succeed(
        "openssl",
        &[
            "x509",
            "-req",
            "-days",
            "2",
            "-in",
            &server_csr,
            "-CA",
            &ca_crt,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
            "-out",
            &server_crt,
            "-extfile",
            &extensions,
        ],
    )?;
    Ok(())
}

/// A folder for a host's certificates where Docker looks for them. Dropping it removes it.
struct CertificateFolder(PathBuf);

impl CertificateFolder {
    fn new(host: &str, authority: &Path) -> Result<Self> {
        let folder = Self(Path::new("/etc/docker/certs.d").join(host));
        fs::create_dir_all(&folder.0)?;
        fs::copy(authority, folder.0.join("ca.crt"))?;
        Ok(folder)
    }
}

impl Drop for CertificateFolder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
        // Only if nobody else has anything there.
        fs::remove_dir("/etc/docker/certs.d").ok();
        fs::remove_dir("/etc/docker").ok();
    }
}

fn small() -> Result<Image> {
    Ok(Image::new(vec![Layer::of(&[Entry::file("file", "content")])?], &["/file"]))
}

#[test]
fn a_private_authority_is_refused_until_certs_d_or_insecure_registries_name_it() -> Result<()> {
    needs_root!("a_private_authority_is_refused_until_certs_d_or_insecure_registries_name_it");
    let scratch = Scratch::new("tls")?;
    let network = Network::new()?;
    certificates(&scratch)?;
    let tls = Some((scratch.join("server.crt"), scratch.join("server.key")));
    let options = Options { tls, network: Some(network.name().to_owned()), ..Options::default() };
    let registry = Registry::with(&scratch, &options)?;
    let reference = registry.reference("app:v1");
    small()?.push_from(&scratch, &reference, Some(network.name()), &[])?;

    let mut daemon = Daemon::prepare(&scratch, &scratch.join("root"))?;
    daemon.network(&network).run()?;
    let refused = daemon.docker(&["pull", &reference])?;
    assert_ne!(refused.code, 0, "a certificate by an unknown authority was accepted");
    assert!(refused.output().to_lowercase().contains("certificate"), "{}", refused.output());
    assert!(
        refused.output().contains("certs.d"),
        "the message does not say where the authority belongs: {}",
        refused.output()
    );
    {
        let _folder = CertificateFolder::new(&registry.address(), &scratch.join("ca.crt"))?;
        daemon.docker_ok(&["pull", "-q", &reference])?;
    }
    daemon.docker_ok(&["rmi", &reference])?;
    assert_ne!(daemon.docker(&["pull", &reference])?.code, 0, "accepted after its authority had gone");
    daemon.stop()?;
    daemon.argument("--insecure-registry").argument(&registry.address()).run()?;
    daemon.docker_ok(&["pull", "-q", &reference])?;
    Ok(())
}

#[test]
fn the_variable_for_the_system_bundle_is_honoured() -> Result<()> {
    needs_root!("the_variable_for_the_system_bundle_is_honoured");
    let scratch = Scratch::new("bundle")?;
    let network = Network::new()?;
    certificates(&scratch)?;
    let tls = Some((scratch.join("server.crt"), scratch.join("server.key")));
    let options = Options { tls, network: Some(network.name().to_owned()), ..Options::default() };
    let registry = Registry::with(&scratch, &options)?;
    let reference = registry.reference("app:v1");
    small()?.push_from(&scratch, &reference, Some(network.name()), &[])?;
    let mut daemon = Daemon::prepare(&scratch, &scratch.join("root"))?;
    daemon.network(&network).variable("SSL_CERT_FILE", &scratch.join("ca.crt").to_string_lossy()).run()?;
    daemon.docker_ok(&["pull", "-q", &reference])?;
    Ok(())
}

#[test]
fn plain_http_is_spoken_to_loopback_and_insecure_registries_alone() -> Result<()> {
    needs_root!("plain_http_is_spoken_to_loopback_and_insecure_registries_alone");
    let scratch = Scratch::new("plain")?;
    let network = Network::new()?;
    let options = Options { network: Some(network.name().to_owned()), ..Options::default() };
    let registry = Registry::with(&scratch, &options)?;
    let reference = registry.reference("app:v1");
    small()?.push_from(&scratch, &reference, Some(network.name()), &[])?;
    let mut daemon = Daemon::prepare(&scratch, &scratch.join("root"))?;
    daemon.network(&network).run()?;
    let refused = daemon.docker(&["pull", &reference])?;
    assert_ne!(refused.code, 0, "spoke plain HTTP to a host that nobody listed");
    daemon.stop()?;
    daemon.argument("--insecure-registry").argument("10.99.0.0/24").run()?;
    daemon.docker_ok(&["pull", "-q", &reference])?;
    Ok(())
}

#[test]
fn a_registry_with_a_password_takes_the_right_one_only() -> Result<()> {
    needs_root!("a_registry_with_a_password_takes_the_right_one_only");
    let scratch = Scratch::new("password")?;
    let file = scratch.join("htpasswd");
    // The registry knows bcrypt alone. This is "user" with the password "hunter-7f3a".
    let script =
        "import crypt; print('user:' + crypt.crypt('hunter-7f3a', crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16)))";
    fs::write(&file, succeed("/usr/bin/python3", &["-W", "ignore", "-c", script])?.stdout())?;
    let registry = Registry::with(&scratch, &Options { htpasswd: Some(file), ..Options::default() })?;
    let reference = registry.reference("app:v1");
    small()?.push_from(&scratch, &reference, None, &["--dest-creds", "user:hunter-7f3a"])?;
    let daemon = Daemon::start(&scratch)?;
    let refused = daemon.docker(&["pull", &reference])?;
    assert_ne!(refused.code, 0);
    // The client keeps the password in its own folder; the daemon sees it with the pull alone.
    let config = |password: &str| {
        use std::fmt::Write as _;
        let pair = format!("user:{password}");
        let script = format!("import base64; print(base64.b64encode(b'{pair}').decode(), end='')");
        let encoded = succeed("/usr/bin/python3", &["-c", &script])?.stdout();
        let mut text = String::new();
        write!(text, r#"{{"auths":{{"{}":{{"auth":"{encoded}"}}}}}}"#, registry.address())?;
        fs::write(daemon.client_folder().join("config.json"), text)?;
        anyhow::Ok(())
    };
    config("wrong")?;
    let refused = daemon.docker(&["pull", &reference])?;
    assert_ne!(refused.code, 0);
    config("hunter-7f3a")?;
    daemon.docker_ok(&["pull", "-q", &reference])?;
    assert!(!daemon.log().contains("hunter-7f3a"), "the daemon's log has the password");
    Ok(())
}
