//! The client against servers that refuse, break off and go away.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures::{StreamExt, stream};

use super::super::testing::{self, Reply, Seen, Server, account};
use super::*;
use crate::config::{Account, CatalogInfo, OpenStackConfig, TlsOptions};
use crate::openstack::OpenStack;

/// SHA-256 of [`DATA`].
const SHA256: &str = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882";
const DATA: &[u8] = b"0123456789";

fn config(servers: &[&Server], retries: usize) -> OpenStackConfig {
    let timeout = Duration::from_secs(2);
    OpenStackConfig {
        keystone: true,
        send_service_token: false,
        service_user: None,
        glance: GlanceConfig {
            servers: servers.iter().map(|s| s.url("/")).collect(),
            catalog: CatalogInfo { service_type: "image".into(), endpoint: "publicURL".into() },
            region: None,
            retries,
            timeout,
            tls: TlsOptions::default(),
            account: None,
            read_files: false,
        },
        nova: crate::config::NovaConfig {
            interface: "public".into(),
            region: None,
            token_auth_url: None,
            account: None,
            tls: TlsOptions::default(),
            timeout,
        },
        keys: crate::config::KeyManagerConfig::default(),
    }
}

fn glance(servers: &[&Server]) -> Glance {
    OpenStack::new(&config(servers, 2)).glance
}

fn with_account(server: &Server, account: Account) -> Glance {
    let mut config = config(&[server], 0);
    config.glance.account = Some(account);
    OpenStack::new(&config).glance
}

fn context(token: Option<&str>) -> RequestContext {
    let mut fields = Map::new();
    fields.insert("request_id".into(), "req-1".into());
    fields.insert("project_id".into(), "p1".into());
    if let Some(token) = token {
        fields.insert("auth_token".into(), token.into());
    }
    RequestContext::from_fields(fields)
}

fn user() -> RequestContext {
    context(Some("users"))
}

fn image() -> Value {
    json!({"id": "i1", "status": "active", "size": DATA.len(), "visibility": "private", "owner": "p1",
           "os_hash_algo": "sha256", "os_hash_value": SHA256, "os_distro": "debian"})
}

/// A glance that knows the image and answers `data` for its bytes.
async fn serving(data: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Server {
    Server::start(move |seen| match seen.path.as_str() {
        "/v2/images/i1" => Reply::json(200, &image()),
        "/v2/images/i1/file" => data(seen),
        _ => Reply::text(404, ""),
    })
    .await
}

/// The bytes from the first that was asked for.
fn ranged(seen: &Seen) -> Reply {
    let Some(range) = seen.header("range") else { return Reply::bytes(200, DATA) };
    let begin: usize = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
    Reply::bytes(206, &DATA[begin..]).with("content-range", &format!("bytes {begin}-9/10"))
}

async fn all(glance: &Glance) -> Result<Vec<u8>> {
    let mut download = glance.download(&user(), "i1").await?;
    let mut bytes = Vec::new();
    while let Some(piece) = download.next().await? {
        bytes.extend_from_slice(&piece);
    }
    assert_eq!(download.next().await?, None);
    Ok(bytes)
}

#[test]
fn a_server_is_named_without_its_version() {
    for url in ["http://g:9292", "http://g:9292/", "http://g:9292/v2", "http://g:9292/v2.1/"] {
        assert_eq!(base(url), "http://g:9292");
    }
    assert_eq!(base("https://h/image/v2"), "https://h/image");
    assert_eq!(base("https://h/image"), "https://h/image");
    assert_eq!(base("https://h/vision"), "https://h/vision");
}

#[tokio::test]
async fn an_image_is_shown_to_the_user_with_his_token() {
    let server = serving(ranged).await;
    let found = glance(&[&server]).show(&user(), "i1").await.unwrap();
    assert_eq!((found.size, found.properties["os_distro"].as_str()), (Some(10), Some("debian")));
    let seen = &server.seen()[0];
    assert_eq!(seen.header("x-auth-token"), Some("users"));
    assert_eq!(seen.header("x-openstack-request-id"), Some("req-1"));
    for id in ["i1/../x", "", "i1?x"] {
        let refusal = glance(&[&server]).show(&user(), id).await.unwrap_err();
        assert_eq!(refusal.code(), Code::ImageNotFound, "{id}");
    }
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn what_glance_refuses_is_one_of_cinders_errors() {
    for (status, code) in [
        (400, Code::Invalid),
        (401, Code::ImageNotAuthorized),
        (403, Code::ImageNotAuthorized),
        (404, Code::ImageNotFound),
        (413, Code::ImageLimitExceeded),
        (409, Code::Glance),
        (500, Code::Glance),
    ] {
        let server = Server::start(move |_| Reply::text(status, "because")).await;
        let refusal = glance(&[&server]).show(&user(), "i1").await.unwrap_err();
        assert_eq!((refusal.code(), server.seen().len()), (code, 1), "{status}");
        assert!(refusal.operator().contains("because"), "{refusal}");
    }
    let bare = OpenStack::new(&config(&[], 0)).glance;
    assert_eq!(bare.show(&user(), "i1").await.unwrap_err().code(), Code::NoEndpoint);
    let nobody = glance(&[&serving(ranged).await]);
    assert_eq!(nobody.show(&context(None), "i1").await.unwrap_err().code(), Code::NotAuthorized);
}

#[tokio::test]
async fn a_server_that_is_away_is_passed_over_and_the_attempts_are_counted() {
    let away = Server::start(|_| Reply::text(503, "")).await;
    let good = serving(ranged).await;
    // Whichever comes first, one further attempt finds the good one.
    let client = OpenStack::new(&config(&[&away, &good], 1)).glance;
    client.show(&user(), "i1").await.unwrap();

    let began = Instant::now();
    let refusal = glance(&[&away]).show(&user(), "i1").await.unwrap_err();
    assert_eq!(refusal.code(), Code::GlanceConnection);
    assert!(began.elapsed() >= 2 * PAUSE);
    let asked = away.seen().len();
    assert!(asked == 3 || asked == 4, "{asked}");
}

#[tokio::test]
async fn without_a_list_the_catalogue_names_the_server() {
    let server = serving(ranged).await;
    let endpoints = json!([{"region": "A", "publicURL": server.url("/v2")}]);
    let Value::Object(fields) =
        json!({"auth_token": "t", "service_catalog": [{"type": "image", "endpoints": endpoints}]})
    else {
        unreachable!()
    };
    let client = OpenStack::new(&config(&[], 0)).glance;
    client.show(&RequestContext::from_fields(fields), "i1").await.unwrap();
}

#[tokio::test]
async fn after_a_crash_the_account_asks_and_the_users_right_is_looked_at() {
    let keystone = Server::start(testing::keystone("x", Duration::from_secs(3600))).await;
    let server = Server::start(|seen| {
        let mut shared = image();
        (shared["owner"], shared["visibility"]) = ("p2".into(), "shared".into());
        let members = json!({"members": [{"member_id": "p1", "status": "accepted"}]});
        match (seen.path.as_str(), seen.header("x-auth-token")) {
            (_, Some("token-1")) => Reply::text(401, ""),
            ("/v2/images/i1", _) => Reply::json(200, &image()),
            ("/v2/images/i2", _) => Reply::json(200, &shared),
            ("/v2/images/i2/members", _) => Reply::json(200, &members),
            _ => Reply::json(200, &{
                let mut private = shared;
                private["visibility"] = "private".into();
                private
            }),
        }
    })
    .await;
    let client = with_account(&server, account(&keystone.url("")));
    client.show(&context(None), "i1").await.unwrap();
    client.show(&context(None), "i2").await.unwrap();
    assert_eq!(client.show(&context(None), "i3").await.unwrap_err().code(), Code::ImageNotFound);
    // The first token was refused, and renewed once.
    assert_eq!(keystone.seen().len(), 2);
}

#[tokio::test]
async fn without_keystone_no_token_is_sent() {
    let server = serving(ranged).await;
    let mut config = config(&[&server], 0);
    config.keystone = false;
    OpenStack::new(&config).glance.show(&user(), "i1").await.unwrap();
    assert_eq!(server.seen()[0].header("x-auth-token"), None);
}

#[tokio::test]
async fn locations_are_asked_for_as_a_service_and_else_taken_from_the_image() {
    let keystone = Server::start(testing::keystone("x", Duration::from_secs(3600))).await;
    let list = json!([{"url": "rbd://f/p/i1/snap", "metadata": {"store": "s"}}]);
    let modern = Server::start(move |seen| match seen.header("x-auth-token") {
        Some("token-1") => Reply::json(200, &list),
        _ => Reply::text(403, ""),
    })
    .await;
    let client = with_account(&modern, account(&keystone.url("")));
    let found = client.locations(&user(), "i1").await.unwrap();
    assert_eq!((found.urls(), found.direct_url.as_deref()), (vec!["rbd://f/p/i1/snap"], None));
    assert_eq!(modern.asked(), ["GET /v2/images/i1/locations"]);

    for status in [403, 404, 405, 501] {
        let old = Server::start(move |seen| match seen.path.as_str() {
            "/v2/images/i1" => {
                let mut image = image();
                image["direct_url"] = "file:///x".into();
                Reply::json(200, &image)
            }
            _ => Reply::text(status, ""),
        })
        .await;
        let found = glance(&[&old]).locations(&user(), "i1").await.unwrap();
        assert_eq!(found.urls(), ["file:///x"]);
    }
}

#[tokio::test]
async fn a_location_is_added_in_the_way_that_glance_has() {
    let old = Server::start(|seen| match (seen.method.as_str(), seen.path.as_str()) {
        ("POST", _) => Reply::text(404, ""),
        _ => Reply::json(200, &image()),
    })
    .await;
    let Value::Object(metadata) = json!({"store": "s"}) else { unreachable!() };
    glance(&[&old]).add_location(&user(), "i1", "cinder://v", &metadata).await.unwrap();
    assert_eq!(old.asked(), ["POST /v2/images/i1/locations", "PATCH /v2/images/i1", "GET /v2/images/i1"]);
    assert_eq!(old.seen()[0].json(), json!({"url": "cinder://v", "validation_data": {"store": "s"}}));
    assert_eq!(old.seen()[1].json()[0]["value"], json!({"url": "cinder://v", "metadata": {"store": "s"}}));
    assert_eq!(old.seen()[1].header("content-type"), Some(PATCH));
}

#[tokio::test]
async fn an_image_is_made_changed_and_deleted() {
    let server = Server::start(|seen| match seen.method.as_str() {
        "POST" => Reply::json(201, &image()),
        "DELETE" => Reply::text(204, ""),
        _ => Reply::json(200, &image()),
    })
    .await;
    let client = glance(&[&server]);
    let Value::Object(meta) = json!({"id": "i1", "name": "n", "properties": {"a": "b"}}) else {
        unreachable!()
    };
    client.create(&user(), &meta).await.unwrap();
    assert_eq!(server.seen()[0].json(), json!({"id": "i1", "name": "n", "a": "b"}));
    client.update(&user(), "i1", &meta, true).await.unwrap();
    let patch = &server.seen()[2];
    let mut paths: Vec<String> =
        patch.json().as_array().unwrap().iter().map(|op| format!("{} {}", op["op"], op["path"])).collect();
    paths.sort();
    assert_eq!(paths, [r#""add" "/a""#, r#""add" "/name""#, r#""remove" "/os_distro""#]);
    client.delete(&user(), "i1").await.unwrap();
    assert_eq!(server.asked().last().unwrap(), "DELETE /v2/images/i1");
}

#[tokio::test]
async fn a_download_arrives_whole_and_is_compared() {
    let server = serving(ranged).await;
    assert_eq!(all(&glance(&[&server])).await.unwrap(), DATA);
    let other = serving(|_| Reply::bytes(200, b"0123456780")).await;
    let refusal = all(&glance(&[&other])).await.unwrap_err();
    assert_eq!(refusal.code(), Code::ImageDownload);
    assert!(refusal.user().contains("sha256"), "{refusal}");
    let empty = serving(|_| Reply::text(204, "")).await;
    assert_eq!(all(&glance(&[&empty])).await.unwrap_err().code(), Code::ImageDownload);
}

#[tokio::test]
async fn a_download_that_breaks_off_goes_on_where_it_stopped() {
    let count = AtomicUsize::new(0);
    let server = serving(move |seen| match count.fetch_add(1, Ordering::SeqCst) {
        0 => ranged(seen).cut_after(4),
        1 => ranged(seen).cut_after(3),
        _ => ranged(seen),
    })
    .await;
    assert_eq!(all(&glance(&[&server])).await.unwrap(), DATA);
    let ranges: Vec<_> = server.seen().iter().filter_map(|s| s.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges, ["bytes=4-", "bytes=7-"]);
}

#[tokio::test]
async fn a_server_without_ranges_sends_all_again_and_nothing_is_handed_out_twice() {
    let count = AtomicUsize::new(0);
    let server = serving(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::bytes(200, DATA).cut_after(4),
        _ => Reply::bytes(200, DATA),
    })
    .await;
    assert_eq!(all(&glance(&[&server])).await.unwrap(), DATA);
}

#[tokio::test]
async fn a_download_stalls_or_breaks_only_so_often() {
    let server = serving(|seen| ranged(seen).cut_after(1)).await;
    let refusal = all(&glance(&[&server])).await.unwrap_err();
    assert_eq!((refusal.code(), server.seen().len()), (Code::GlanceConnection, 4));

    let count = AtomicUsize::new(0);
    let stalling = serving(move |seen| match count.fetch_add(1, Ordering::SeqCst) {
        0 => ranged(seen).stalling_after(4),
        _ => ranged(seen),
    })
    .await;
    assert_eq!(all(&glance(&[&stalling])).await.unwrap(), DATA);

    let wrong = AtomicUsize::new(0);
    let wrong = serving(move |seen| match wrong.fetch_add(1, Ordering::SeqCst) {
        0 => ranged(seen).cut_after(4),
        _ => Reply::bytes(206, b"89").with("content-range", "bytes 8-9/10"),
    })
    .await;
    assert_eq!(all(&glance(&[&wrong])).await.unwrap_err().code(), Code::ImageDownload);
}

#[tokio::test]
async fn a_file_that_is_readable_here_is_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), DATA).unwrap();
    let url = format!("file://{}", file.path().display());
    let server = Server::start(move |seen| match seen.path.as_str() {
        "/v2/images/i1/locations" => Reply::json(200, &json!([{ "url": url, "metadata": {} }])),
        "/v2/images/i1" => Reply::json(200, &image()),
        _ => Reply::text(500, ""),
    })
    .await;
    let mut config = config(&[&server], 0);
    config.glance.read_files = true;
    assert_eq!(all(&OpenStack::new(&config).glance).await.unwrap(), DATA);
}

/// A glance that takes bytes as `put` says.
async fn taking(put: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Server {
    Server::start(move |seen| match seen.method.as_str() {
        "PUT" => put(seen),
        _ => Reply::json(200, &image()),
    })
    .await
}

#[tokio::test]
async fn an_upload_is_sent_as_it_comes() {
    let server = taking(|_| Reply::text(204, "")).await;
    let upload = Upload { store: Some("fast".into()), size: Some(40 << 20), ..Upload::default() };
    let piece = Bytes::from(vec![7; 1 << 20]);
    let made = std::sync::Arc::new(AtomicUsize::new(0));
    let count = made.clone();
    let open = move || {
        let (piece, count) = (piece.clone(), count.clone());
        stream::iter(0..40).map(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(piece.clone())
        })
    };
    glance(&[&server]).upload(&user(), "i1", &upload, open).await.unwrap();
    let seen = &server.seen()[0];
    assert_eq!(seen.path, "/v2/images/i1/file");
    assert_eq!((seen.body.len(), made.load(Ordering::SeqCst)), (40 << 20, 40));
    assert!(seen.chunks.len() >= 40, "not as one body");
    assert_eq!(seen.header("content-length"), None);
    assert_eq!(seen.header("x-image-meta-store"), Some("fast"));
    assert_eq!(seen.header("x-openstack-image-size"), Some("41943040"));
    assert_eq!(seen.header("content-type"), Some("application/octet-stream"));
}

fn pieces(parts: &'static [&'static str]) -> impl Fn() -> futures::stream::BoxStream<'static, Result<Bytes>> {
    move || stream::iter(parts.iter().map(|p| Ok(Bytes::from_static(p.as_bytes())))).boxed()
}

#[tokio::test]
async fn an_upload_that_fails_begins_anew_elsewhere() {
    let count = AtomicUsize::new(0);
    let server = taking(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::text(503, ""),
        _ => Reply::text(204, ""),
    })
    .await;
    glance(&[&server]).upload(&user(), "i1", &Upload::default(), pieces(&["abc", "def"])).await.unwrap();
    let bodies: Vec<_> = server.seen().into_iter().filter(|s| s.method == "PUT").map(|s| s.body).collect();
    assert_eq!(bodies, [b"abcdef".to_vec(), b"abcdef".to_vec()]);

    let conflict = taking(|_| Reply::text(409, "it has data already")).await;
    let refusal =
        glance(&[&conflict]).upload(&user(), "i1", &Upload::default(), pieces(&["abc"])).await.unwrap_err();
    assert_eq!(refusal.code(), Code::Glance);
}

#[tokio::test]
async fn an_upload_ends_with_its_source_and_when_nothing_moves() {
    let server = taking(|_| Reply::text(204, "")).await;
    let broken = || {
        stream::iter([
            Ok(Bytes::from_static(b"abc")),
            Err(Error::new(Code::VolumeBackend, "the disk is gone")),
        ])
    };
    let refusal = glance(&[&server]).upload(&user(), "i1", &Upload::default(), broken).await.unwrap_err();
    assert_eq!((refusal.code(), refusal.user()), (Code::VolumeBackend, "the disk is gone"));
    assert!(server.seen().iter().all(|seen| seen.method != "PUT"), "a part is no image");

    let deaf = taking(|_| Reply::text(204, "").after(Duration::from_secs(60))).await;
    let mut config = config(&[&deaf], 0);
    config.glance.timeout = Duration::from_millis(300);
    let client = OpenStack::new(&config).glance;
    let refusal = client.upload(&user(), "i1", &Upload::default(), pieces(&["abc"])).await.unwrap_err();
    assert_eq!(refusal.code(), Code::GlanceConnection);
}

#[tokio::test]
async fn a_slow_upload_is_not_a_stalled_one() {
    let server = taking(|_| Reply::text(204, "")).await;
    let mut config = config(&[&server], 0);
    config.glance.timeout = Duration::from_millis(600);
    let opened = Mutex::new(0);
    let open = || {
        *opened.lock().unwrap() += 1;
        stream::iter(0..6).then(|_| async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            Ok(Bytes::from_static(b"x"))
        })
    };
    OpenStack::new(&config).glance.upload(&user(), "i1", &Upload::default(), open).await.unwrap();
    assert_eq!(*opened.lock().unwrap(), 1);
}
