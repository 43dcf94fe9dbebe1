//! Who is shown a credential, and who never is.

mod support;

use std::sync::Arc;

use baleen_oci::{Platform, Reference};
use baleen_registry::{
    Client, Credentials, InsecureRegistries, Missing, RegistryError, RepositoryClient, ResolvedImage, Secret,
};
use support::stub::{Asked, Ending, Image, Reply, Stub, quick_config};
use support::{Scratch, run};

const BASIC: &str = "Basic dXNlcjpwYXNz";

fn password() -> Credentials {
    Credentials::Basic { username: "user".into(), password: Secret::new("pass") }
}

fn reference(stub: &Stub) -> Reference {
    Reference::parse(&format!("127.0.0.1:{}/team/app:1", stub.port())).unwrap()
}

fn client(stub: &Stub, credentials: Credentials) -> RepositoryClient {
    Client::new(quick_config()).repository(reference(stub).repository(), credentials)
}

async fn resolve(stub: &Stub, credentials: Credentials) -> Result<ResolvedImage, RegistryError> {
    client(stub, credentials).resolve(&reference(stub), &Platform::host()).await
}

/// Fetches the image and its layer.
async fn pull(stub: &Stub, credentials: Credentials) -> Result<Vec<u8>, RegistryError> {
    let client = client(stub, credentials);
    let image = client.resolve(&reference(stub), &Platform::host()).await?;
    client.bytes(&image.manifest.layers[0], 1 << 20).await
}

fn missing(asked: &Asked) -> Reply {
    Reply::error(404, "MANIFEST_UNKNOWN", &format!("nothing at {}", asked.path))
}

/// A registry that wants what `expected` says, and challenges otherwise.
async fn guarded(image: Image, expected: &'static str, challenge: String) -> Stub {
    Stub::start(move |asked| match asked.header("authorization") {
        Some(shown) if shown == expected => image.reply(asked, "team/app", "1").unwrap_or_else(|| missing(asked)),
        _ => Reply::error(401, "UNAUTHORIZED", "authentication required").header("WWW-Authenticate", challenge.clone()),
    })
    .await
}

fn authorizations(stub: &Stub) -> Vec<Option<String>> {
    stub.asked().iter().map(|asked| asked.header("authorization").map(str::to_owned)).collect()
}

#[test]
fn a_password_is_shown_once_it_is_asked_for() {
    run(async {
        let image = Image::new(1);
        let stub = guarded(image.clone(), BASIC, "Basic realm=\"r\"".into()).await;
        assert_eq!(pull(&stub, password()).await.unwrap(), image.layer);
        assert_eq!(authorizations(&stub)[0], None, "nothing is shown unasked");
        assert!(authorizations(&stub)[1..].iter().all(|shown| shown.as_deref() == Some(BASIC)));
        assert_eq!(stub.asked().len(), 4, "and it is asked for once");
    });
}

#[test]
fn a_wrong_password_and_none_are_refused() {
    run(async {
        let stub = guarded(Image::new(1), BASIC, "Basic realm=\"r\"".into()).await;
        let wrong = Credentials::Basic { username: "user".into(), password: Secret::new("wrong") };
        for (credentials, requests) in [(wrong, 2), (Credentials::Anonymous, 1)] {
            let before = stub.asked().len();
            let error = resolve(&stub, credentials).await.unwrap_err();
            assert!(matches!(&error, RegistryError::Unauthorized { .. }), "{error}");
            assert_eq!(error.docker_status(), 401);
            assert!(error.to_string().contains("unauthorized: authentication required"), "{error}");
            assert_eq!(stub.asked().len() - before, requests, "and not tried again");
        }
    });
}

/// A token server that gives `token` to who shows what `expected` says.
async fn token_server(expected: Option<&'static str>, token: &'static str) -> Stub {
    Stub::start(move |asked| match asked.header("authorization") == expected {
        true => Reply::document("application/json", format!(r#"{{"token":"{token}","expires_in":300}}"#)),
        false => Reply::error(401, "UNAUTHORIZED", "who are you"),
    })
    .await
}

fn bearer_challenge(tokens: &Stub) -> String {
    let port = tokens.port();
    format!(
        r#"Bearer realm="http://127.0.0.1:{port}/token?x=1",service="the registry",scope="repository:secret/other:pull,push""#
    )
}

#[test]
fn a_token_is_asked_for_with_the_password_and_for_our_own_scope() {
    run(async {
        let image = Image::new(1);
        let tokens = token_server(Some(BASIC), "t0ken").await;
        let stub = guarded(image.clone(), "Bearer t0ken", bearer_challenge(&tokens)).await;
        assert_eq!(pull(&stub, password()).await.unwrap(), image.layer);
        let [asked] = &tokens.asked()[..] else { panic!("one token serves the whole pull") };
        assert_eq!(asked.method, "GET");
        assert_eq!(
            asked.path, "/token?x=1&scope=repository%3Ateam%2Fapp%3Apull&service=the%20registry&account=user",
            "the scope is ours, whatever the registry named"
        );
        assert!(
            authorizations(&stub).iter().all(|shown| shown.as_deref() != Some(BASIC)),
            "the registry sees no password"
        );
    });
}

#[test]
fn a_token_is_had_without_a_password() {
    run(async {
        let tokens = token_server(None, "anonymous").await;
        let stub = guarded(Image::new(1), "Bearer anonymous", bearer_challenge(&tokens)).await;
        resolve(&stub, Credentials::Anonymous).await.unwrap();
        assert!(!tokens.asked()[0].path.contains("account"));
    });
}

#[test]
fn an_identity_token_is_sent_in_a_form() {
    run(async {
        let tokens = Stub::start(|asked| match asked.body.contains("refresh_token=id%2Ftoken") {
            true => Reply::document("application/json", r#"{"access_token":"t"}"#),
            false => Reply::new(400, ""),
        })
        .await;
        let stub = guarded(Image::new(1), "Bearer t", bearer_challenge(&tokens)).await;
        resolve(&stub, Credentials::IdentityToken(Secret::new("id/token"))).await.unwrap();
        let asked = &tokens.asked()[0];
        assert_eq!(asked.method, "POST");
        assert!(asked.body.starts_with("grant_type=refresh_token&"), "{}", asked.body);
        assert!(asked.body.contains("&scope=repository%3Ateam%2Fapp%3Apull&"), "{}", asked.body);
        assert_eq!(asked.header("authorization"), None);
    });
}

#[test]
fn a_registry_token_is_shown_as_it_is() {
    run(async {
        let tokens = token_server(None, "unused").await;
        let stub = guarded(Image::new(1), "Bearer given", bearer_challenge(&tokens)).await;
        resolve(&stub, Credentials::RegistryToken(Secret::new("given"))).await.unwrap();
        assert!(tokens.asked().is_empty());
        let error = resolve(&stub, Credentials::RegistryToken(Secret::new("old"))).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
    });
}

#[test]
fn a_token_that_ran_out_in_the_middle_of_a_pull_is_replaced() {
    run(async {
        let image = Image::new(1);
        let tokens = Stub::start(|asked| Reply::new(200, format!(r#"{{"token":"t{}"}}"#, asked.earlier))).await;
        let (challenge, served) = (bearer_challenge(&tokens), image.clone());
        let stub = Stub::start(move |asked| {
            let expected = if asked.path.contains("manifests") { "Bearer t0" } else { "Bearer t1" };
            match asked.header("authorization") == Some(expected) {
                true => served.reply(asked, "team/app", "1").unwrap_or_else(|| missing(asked)),
                false => Reply::new(401, "").header("WWW-Authenticate", challenge.clone()),
            }
        })
        .await;
        assert_eq!(pull(&stub, Credentials::Anonymous).await.unwrap(), image.layer);
        assert_eq!(tokens.asked().len(), 2);
    });
}

#[test]
fn challenges_and_redirects_cost_no_connection() {
    run(async {
        let image = Image::new(1);
        let served = image.clone();
        let store =
            Stub::start(move |asked| served.reply(asked, "team/app", "1").unwrap_or_else(|| missing(asked))).await;
        let (tokens, port) = (token_server(None, "t").await, store.port());
        let (challenge, served) = (bearer_challenge(&tokens), image.clone());
        let stub = Stub::start(move |asked| match asked.header("authorization") {
            Some(_) if asked.path.contains("/blobs/") => {
                Reply::redirect(format!("http://127.0.0.1:{port}{}", asked.path))
            }
            Some(_) => served.reply(asked, "team/app", "1").unwrap_or_else(|| missing(asked)),
            None => Reply::error(401, "UNAUTHORIZED", "token, please").header("WWW-Authenticate", challenge.clone()),
        })
        .await;
        assert_eq!(pull(&stub, Credentials::Anonymous).await.unwrap(), image.layer);
        // The first tells us by its refusal of TLS that the registry is a plain one.
        assert_eq!((stub.asked().len(), stub.accepted_connections()), (4, 2));
        assert_eq!((store.asked().len(), store.accepted_connections()), (2, 1));
    });
}

#[test]
fn a_token_without_the_right_to_the_repository_is_told_in_docker_s_words() {
    run(async {
        let tokens = token_server(None, "weak").await;
        let challenge = format!("{},error=\"insufficient_scope\"", bearer_challenge(&tokens));
        let stub = guarded(Image::new(1), "Bearer strong", challenge).await;
        let error = resolve(&stub, Credentials::Anonymous).await.unwrap_err();
        assert!(matches!(error, RegistryError::NotFound { missing: Missing::AccessDenied, .. }));
        let text = format!(
            "pull access denied for 127.0.0.1:{}/team/app, repository does not exist or may require 'docker login': \
             denied: requested access to the resource is denied",
            stub.port()
        );
        assert_eq!((error.to_string(), error.docker_status()), (text, 404));
    });
}

#[test]
fn a_refusing_and_a_talkative_token_server_end_the_pull() {
    run(async {
        let refusing = token_server(Some("nobody has this"), "t").await;
        let stub = guarded(Image::new(1), "Bearer t", bearer_challenge(&refusing)).await;
        let error = resolve(&stub, password()).await.unwrap_err();
        assert!(matches!(&error, RegistryError::Unauthorized { .. }), "{error}");
        assert!(error.to_string().contains("who are you"), "{error}");
        let endless = Stub::start(|_| Reply::new(200, " ".repeat(1000)).ending(Ending::Endless)).await;
        let stub = guarded(Image::new(1), "Bearer t", bearer_challenge(&endless)).await;
        let error = resolve(&stub, password()).await.unwrap_err();
        assert!(matches!(error, RegistryError::TooLarge { bytes_max: 65_536, .. }), "{error}");
        let empty = Stub::start(|_| Reply::new(200, "{}")).await;
        let stub = guarded(Image::new(1), "Bearer ", bearer_challenge(&empty)).await;
        let error = resolve(&stub, password()).await.unwrap_err();
        assert!(matches!(error, RegistryError::Protocol { .. }), "{error}");
    });
}

#[test]
fn the_target_of_a_redirect_never_sees_a_credential() {
    run(async {
        let image = Image::new(1);
        let served = image.clone();
        let other = Arc::new(
            Stub::start(move |asked| served.reply(asked, "team/app", "1").unwrap_or_else(|| missing(asked))).await,
        );
        let port = other.port();
        let stub = Stub::start(move |asked| match asked.header("authorization") {
            Some(BASIC) => Reply::redirect(format!("http://127.0.0.1:{port}{}", asked.path)),
            _ => Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"r\""),
        })
        .await;
        assert_eq!(
            pull(&stub, password()).await.unwrap(),
            image.layer,
            "manifest, configuration and layer are followed"
        );
        assert_eq!(other.asked().len(), 3);
        assert!(other.asked().iter().all(|asked| asked.header("authorization").is_none()));
        assert!(other.asked().iter().all(|asked| !format!("{asked:?}").contains("dXNlc")));
    });
}

#[test]
fn a_challenge_by_the_target_of_a_redirect_is_not_answered() {
    run(async {
        let other = Stub::start(|_| Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"r\"")).await;
        let port = other.port();
        let stub = Stub::start(move |asked| match asked.header("authorization") {
            Some(BASIC) => Reply::redirect(format!("http://127.0.0.1:{port}/")),
            _ => Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"r\""),
        })
        .await;
        let error = resolve(&stub, password()).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
        assert_eq!(authorizations(&other), [None]);
    });
}

#[test]
fn a_way_back_through_another_host_brings_the_credential_not_back() {
    run(async {
        let back = Arc::new(std::sync::OnceLock::<u16>::new());
        let home = back.clone();
        let other = Stub::start(move |_| {
            Reply::redirect(format!("http://127.0.0.1:{}/v2/team/app/manifests/back", home.get().unwrap()))
        })
        .await;
        let port = other.port();
        let stub = Stub::start(move |asked| match (asked.path.ends_with("/back"), asked.header("authorization")) {
            (true, _) => Reply::error(404, "MANIFEST_UNKNOWN", "x"),
            (false, Some(BASIC)) => Reply::redirect(format!("http://127.0.0.1:{port}/")),
            (false, _) => Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"r\""),
        })
        .await;
        back.set(stub.port()).unwrap();
        resolve(&stub, password()).await.unwrap_err();
        let last = stub.asked().pop().unwrap();
        assert!(last.path.ends_with("/back") && last.header("authorization").is_none());
    });
}

#[test]
fn a_redirected_token_server_loses_the_password() {
    run(async {
        let second = token_server(None, "t").await;
        let port = second.port();
        let first = Stub::start(move |asked| Reply::redirect(format!("http://127.0.0.1:{port}{}", asked.path))).await;
        let stub = guarded(Image::new(1), "Bearer t", bearer_challenge(&first)).await;
        resolve(&stub, password()).await.unwrap();
        assert_eq!(authorizations(&first), [Some(BASIC.to_owned())]);
        assert_eq!(authorizations(&second), [None]);
    });
}

#[test]
fn nothing_leads_from_another_host_to_this_machine() {
    run(async {
        let local = Stub::start(|_| Reply::new(200, "{}")).await;
        let port = local.port();
        let scratch = Scratch::new("authentication");
        let mut config = quick_config();
        config.hosts_file = scratch.path().join("hosts");
        std::fs::write(&config.hosts_file, "127.0.0.1 registry.test\n").unwrap();
        let redirecting = Stub::start(move |_| Reply::redirect(format!("http://localhost:{port}/?secret"))).await;
        let realm = format!("Bearer realm=\"http://127.0.0.1:{port}/token\"");
        let challenging = guarded(Image::new(1), "Bearer t", realm).await;
        for stub in [redirecting, challenging] {
            let host = format!("registry.test:{}", stub.port());
            config.insecure_registries = InsecureRegistries::parse([&host]).unwrap();
            let reference = Reference::parse(&format!("{host}/team/app:1")).unwrap();
            let client = Client::new(config.clone()).repository(reference.repository(), password());
            let error = client.document(&reference).await.unwrap_err();
            assert!(matches!(error, RegistryError::Redirect { .. }), "{error}");
            assert!(!error.to_string().contains("secret"), "a query may hold a signature: {error}");
        }
        assert_eq!(local.accepted_connections(), 0);
    });
}

#[test]
fn plain_http_to_a_host_that_is_not_insecure_is_refused() {
    run(async {
        let stub = Stub::start(|_| Reply::redirect("http://registry.example/x")).await;
        let error = resolve(&stub, password()).await.unwrap_err();
        assert!(matches!(error, RegistryError::Redirect { .. }), "{error}");
        let realm = r#"Bearer realm="http://auth.example/token""#;
        let stub = guarded(Image::new(1), "Bearer t", realm.into()).await;
        let error = resolve(&stub, password()).await.unwrap_err();
        assert!(matches!(error, RegistryError::Redirect { .. }), "{error}");
    });
}
