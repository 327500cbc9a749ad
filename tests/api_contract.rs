//! What clients rely on: shapes, defaults, partial updates, unique names, credentials, headers.

mod common;

use std::collections::BTreeSet;

use common::{Api, KEY, Server};
use serde_json::{Value, json};

/// Goal: a project has every field from its birth, with the contract's defaults where a field is
/// absent, empty or not positive (sections 6.1, 6.2).
#[actix_rt::test]
async fn projects_are_made_with_the_contracts_defaults() {
    let server = Server::start();
    let api = server.api();
    assert_eq!(
        api.get("/api/projects").await.ok(200).text,
        "[]",
        "an empty list is a list"
    );

    let saying_nothing = json!({
        "name": "b", "template": "", "cpuCount": 0, "memoryMB": -5, "timeoutSec": 0,
        "egressAllowlist": null, "unknownField": { "deep": [1, 2] },
    });
    for body in [json!({ "name": "a" }), saying_nothing] {
        let made = api.post("/api/projects", &body).await.ok(201).json();
        let wanted = json!({
            "id": made["id"], "orgId": made["orgId"], "name": body["name"], "template": "default",
            "cpuCount": 1, "memoryMB": 1024, "timeoutSec": 300, "egressAllowlist": [],
            "createdAt": made["createdAt"], "updatedAt": made["createdAt"],
        });
        assert_eq!(made, wanted);
        assert!(made["id"].as_str().is_some_and(is_uuid_v7), "{made}");
        assert!(
            made["createdAt"].as_str().is_some_and(is_utc_time),
            "{made}"
        );
        let path = format!("/api/projects/{}", made["id"].as_str().unwrap_or_default());
        assert_eq!(api.get(&path).await.ok(200).json(), made);
    }
    let full = json!({
        "name": "A b/\u{e7}", "template": "node", "cpuCount": 4, "memoryMB": 16384,
        "timeoutSec": 2147483647, "egressAllowlist": ["*", "*.Example.test", "a.test:443"],
    });
    let made = api.post("/api/projects", &full).await.ok(201).json();
    for (field, value) in full.as_object().expect("an object") {
        assert_eq!(&made[field], value, "{field}");
    }
    let names = names_of(&api, "/api/projects").await;
    assert_eq!(names, ["A b/\u{e7}", "a", "b"], "listed by name");
}

/// Goal: an update changes exactly the fields that say something (sections 6.2, 23.2).
#[actix_rt::test]
async fn updates_change_only_what_they_name() {
    let server = Server::start();
    let api = server.api();
    let full = json!({
        "name": "p", "template": "node", "cpuCount": 2, "memoryMB": 2048, "timeoutSec": 60,
        "egressAllowlist": ["a.test"],
    });
    let id = api.project(&full).await;
    let path = format!("/api/projects/{id}");
    let before = api.get(&path).await.json();
    let keeping = [
        json!({}),
        json!({ "name": null, "template": null, "cpuCount": null, "memoryMB": null,
                "timeoutSec": null, "egressAllowlist": null }),
        json!({ "name": "", "template": "", "cpuCount": 0, "memoryMB": 0, "timeoutSec": 0 }),
        json!({ "name": "p" }),
        json!({ "unknown": 1 }),
    ];
    for body in keeping {
        assert_eq!(
            api.put(&path, &body).await.ok(200).json(),
            before,
            "{body} changes nothing"
        );
    }
    assert_eq!(
        api.call("PUT", &path, None).await.ok(200).json(),
        before,
        "no body, no change"
    );
    let mut now = before.clone();
    for (field, value) in [
        ("name", json!("q")),
        ("template", json!("python")),
        ("cpuCount", json!(3)),
        ("memoryMB", json!(128)),
        ("timeoutSec", json!(1)),
        ("egressAllowlist", json!(["b.test", "c.test"])),
        ("egressAllowlist", json!([])),
    ] {
        let changed = api
            .put(&path, &json!({ field: value }))
            .await
            .ok(200)
            .json();
        assert_ne!(
            changed["updatedAt"], now["updatedAt"],
            "{field} moves updatedAt"
        );
        now["updatedAt"] = changed["updatedAt"].clone();
        now[field] = value;
        assert_eq!(changed, now, "only {field} changes");
    }
    let id = api
        .store(&json!({ "name": "s", "egressAllowlist": ["a.test"] }))
        .await;
    let path = format!("/api/secret-stores/{id}");
    let before = api.get(&path).await.json();
    for body in [
        json!({}),
        json!({ "name": "", "egressAllowlist": null }),
        json!({ "name": "s" }),
    ] {
        assert_eq!(
            api.put(&path, &body).await.ok(200).json(),
            before,
            "{body} changes nothing"
        );
    }
    let changed = api
        .put(&path, &json!({ "egressAllowlist": [] }))
        .await
        .ok(200)
        .json();
    assert_eq!(
        (&changed["name"], &changed["egressAllowlist"]),
        (&json!("s"), &json!([]))
    );
}

/// Goal: of many creates of one name at once exactly one wins; a rename and a delete free the name;
/// a project and a store may share one; case matters (section 23.1).
#[actix_rt::test]
async fn names_are_unique_and_come_free() {
    let server = Server::start_with_two_orgs();
    let api = server.api();
    for (path, taken) in [
        ("/api/projects", "project name already exists"),
        ("/api/secret-stores", "secret store name already exists"),
    ] {
        let creates = (0..32).map(|_| {
            let api = api.clone();
            async move { api.post(path, &json!({ "name": "one" })).await }
        });
        let replies = futures_util::future::join_all(creates).await;
        let (won, lost): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply.status == 201);
        assert_eq!((won.len(), lost.len()), (1, 31), "{replies:?}");
        lost.iter().for_each(|reply| reply.refused(409, taken));
        assert_eq!(names_of(&api, path).await, ["one"]);

        let first = format!("{path}/{}", won[0].id());
        api.post(path, &json!({ "name": "One" })).await.ok(201);
        let second = format!(
            "{path}/{}",
            api.post(path, &json!({ "name": "two" })).await.id()
        );
        api.put(&second, &json!({ "name": "one" }))
            .await
            .refused(409, taken);
        api.put(&first, &json!({ "name": "three" })).await.ok(200);
        api.put(&second, &json!({ "name": "one" })).await.ok(200);
        api.put(&first, &json!({ "name": "two" })).await.ok(200);
        api.delete(&second).await.ok(204);
        api.get(&second).await.ok(404);
        api.delete(&second).await.ok(404);
        api.post(path, &json!({ "name": "one" })).await.ok(201);
        assert_eq!(names_of(&api, path).await, ["One", "one", "two"]);

        // Each organization has names of its own.
        assert_eq!(server.other().get(path).await.ok(200).text, "[]");
        server
            .other()
            .post(path, &json!({ "name": "one" }))
            .await
            .ok(201);
    }
    // Renames that cross: each name ends with at most one owner, and nobody loses its own.
    let a = format!(
        "/api/projects/{}",
        api.project(&json!({ "name": "left" })).await
    );
    let b = format!(
        "/api/projects/{}",
        api.project(&json!({ "name": "right" })).await
    );
    let (to_right, to_left) = (json!({ "name": "right" }), json!({ "name": "left" }));
    let crossing = futures_util::join!(api.put(&a, &to_right), api.put(&b, &to_left));
    assert_eq!(
        (crossing.0.status, crossing.1.status),
        (409, 409),
        "both names were taken"
    );
}

/// Goal: values go in and never come out; names are listed in order; setting replaces; delete
/// deletes (sections 6.2, 7.1, 7.2).
#[actix_rt::test]
async fn secrets_are_listed_without_their_values() {
    const VALUE: &str = "value-4c1d77e0";
    let server = Server::start();
    let api = server.api();
    let project = format!(
        "/api/projects/{}/secrets",
        api.project(&json!({ "name": "p" })).await
    );
    let id = api.store(&json!({ "name": "s" })).await;
    let store = format!("/api/secret-stores/{id}/secrets");
    let mut seen = String::new();
    for path in [&project, &store] {
        assert_eq!(api.get(path).await.ok(200).text, "[]");
        for (name, hosts) in [
            ("B", json!(["a.test"])),
            ("_a1", json!(null)),
            ("A", json!([])),
        ] {
            let body = json!({ "value": VALUE, "allowedHosts": hosts });
            let set = api.put(&format!("{path}/{name}"), &body).await.ok(200);
            // Strings only: the CLI reads this as a map of strings.
            assert_eq!(set.json(), json!({ "name": name, "status": "set" }));
            seen.push_str(&set.text);
        }
        seen.push_str(&api.get(path).await.text);
    }
    assert_eq!(
        api.get(&project).await.ok(200).json(),
        json!(["A", "B", "_a1"])
    );
    let entries = api.get(&store).await.ok(200).json();
    let entry = |index: usize| entries[index].clone();
    let wanted = json!({
        "id": entry(1)["id"], "storeId": id, "name": "B", "allowedHosts": ["a.test"],
        "createdAt": entry(1)["createdAt"], "updatedAt": entry(1)["createdAt"],
    });
    assert_eq!(entry(1), wanted);

    // Again, without hosts: the entry keeps its id and birth, and the restriction is lifted.
    api.put(&format!("{store}/B"), &json!({ "value": "other" }))
        .await
        .ok(200);
    let again = api.get(&store).await.json()[1].clone();
    assert_eq!(
        (&again["id"], &again["createdAt"]),
        (&wanted["id"], &wanted["createdAt"])
    );
    assert_eq!(again["allowedHosts"], json!([]));
    assert_ne!(again["updatedAt"], wanted["updatedAt"]);

    for path in [&project, &store] {
        api.delete(&format!("{path}/B")).await.ok(204);
        api.delete(&format!("{path}/B"))
            .await
            .refused(404, "secret not found");
    }
    assert_eq!(api.get(&project).await.json(), json!(["A", "_a1"]));
    let trail = api.get("/api/audit/events?limit=500").await.ok(200).text;
    assert!(trail.contains("store.secret_set.v1"));
    for text in [seen, trail, server.log()] {
        assert!(!text.contains(VALUE), "a value came out");
    }
}

/// Goal: a write that meets the delete of its object is refused as if it had come after it; never
/// as a failure of the server.
#[actix_rt::test]
async fn writes_that_race_a_delete_find_nothing() {
    let server = Server::start();
    let api = server.api();
    for (at, gone) in [
        ("/api/projects", "project not found"),
        ("/api/secret-stores", "secret store not found"),
    ] {
        for round in 0..20 {
            let id = api.post(at, &json!({ "name": "raced" })).await.ok(201).id();
            let path = format!("{at}/{id}");
            let secret = |name: String| {
                let (api, path) = (api.clone(), format!("{path}/secrets/{name}"));
                async move { api.put(&path, &json!({ "value": "v" })).await }
            };
            secret("FIRST".to_owned()).await.ok(200);
            let early = futures_util::future::join_all((0..4).map(|n| secret(format!("E{n}"))));
            let late = futures_util::future::join_all((0..4).map(|n| secret(format!("L{n}"))));
            let (early, deleted, late) = futures_util::join!(early, api.delete(&path), late);
            deleted.ok(204);
            for reply in early
                .iter()
                .chain(&late)
                .filter(|reply| reply.status != 200)
            {
                reply.refused(404, gone);
            }
            api.get(&path).await.refused(404, gone);
            assert_eq!(api.get(at).await.text, "[]", "round {round}");
        }
    }
    api.verified_positions().await;
}

/// Every resource of the door as the source declares it: file, path there, methods, who may.
const ROUTES: &[(&str, &str, &[&str], Who)] = &[
    ("images", "/snapshots", &["GET", "POST"], Who::Key),
    ("images", "/snapshots/{name}", &["DELETE", "GET"], Who::Key),
    (
        "images",
        "/snapshots/{name}/patches",
        &["GET", "POST"],
        Who::Key,
    ),
    (
        "images",
        "/snapshots/{name}/patches/{patch}",
        &["DELETE"],
        Who::Key,
    ),
    ("images", "/images", &["GET"], Who::Key),
    ("images", "/images/{name}", &["DELETE", "GET"], Who::Key),
    (
        "images",
        "/images/{name}/patches",
        &["GET", "POST"],
        Who::Key,
    ),
    (
        "images",
        "/images/{name}/patches/{patch}",
        &["DELETE"],
        Who::Key,
    ),
    ("images", "/snapshots/{name}/publish", &["POST"], Who::Key),
    ("images", "/snapshots/{name}/unpublish", &["POST"], Who::Key),
    ("admin_socket", "/admin/orgs", &["GET", "POST"], Who::Socket),
    (
        "admin_socket",
        "/admin/orgs/{org}/keys",
        &["GET", "POST"],
        Who::Socket,
    ),
    (
        "admin_socket",
        "/admin/orgs/{org}/keys/{key}",
        &["DELETE"],
        Who::Socket,
    ),
    ("keys", "/auth/cli/credential", &["DELETE"], Who::Origin),
    ("keys", "/keys", &["GET", "POST"], Who::Key),
    ("keys", "/keys/{key}", &["DELETE"], Who::Key),
    ("audit", "/audit/events", &["GET"], Who::Key),
    ("audit", "/audit/events/{event}", &["GET"], Who::Key),
    ("audit", "/audit/state", &["GET"], Who::Key),
    ("audit_proof", "/audit/checkpoint", &["GET"], Who::Key),
    ("audit_proof", "/audit/export", &["GET"], Who::Key),
    ("audit_proof", "/audit/verify", &["POST"], Who::Key),
    ("audit_secrets", "/audit/secrets", &["GET"], Who::Key),
    ("stats", "/stats", &["GET"], Who::Sandbox),
    (
        "checkpoints",
        "/checkpoints",
        &["GET", "POST"],
        Who::Sandbox,
    ),
    (
        "checkpoints",
        "/checkpoints/{checkpoint}",
        &["DELETE"],
        Who::Sandbox,
    ),
    (
        "checkpoints",
        "/checkpoints/{checkpoint}/restore",
        &["POST"],
        Who::Sandbox,
    ),
    ("checkpoints", "/lineage", &["GET"], Who::Sandbox),
    (
        "checkpoints",
        "/sandboxes/checkpoints/{checkpoint}/diff/{other}",
        &["GET"],
        Who::Key,
    ),
    (
        "checkpoints",
        "/sandboxes/checkpoints/{checkpoint}/patches",
        &["GET", "POST"],
        Who::Key,
    ),
    (
        "checkpoints",
        "/sandboxes/checkpoints/{checkpoint}/patches/{patch}",
        &["DELETE"],
        Who::Key,
    ),
    (
        "checkpoints",
        "/sandboxes/checkpoints/{checkpoint}/publish",
        &["POST"],
        Who::Key,
    ),
    (
        "checkpoints",
        "/sandboxes/checkpoints/{checkpoint}/unpublish",
        &["POST"],
        Who::Key,
    ),
    (
        "checkpoints",
        "/sandboxes/from-checkpoint/{checkpoint}",
        &["POST"],
        Who::Key,
    ),
    ("exec", "/commands", &["POST"], Who::Sandbox),
    ("exec", "/exec", &["GET", "POST"], Who::Sandbox),
    ("exec", "/exec/run", &["POST"], Who::Sandbox),
    ("exec", "/exec/run-async", &["POST"], Who::Sandbox),
    ("exec", "/exec/{exec}/result", &["GET"], Who::Sandbox),
    ("exec", "/exec/{session}", &["GET"], Who::Sandbox),
    ("exec", "/exec/{session}/kill", &["POST"], Who::Sandbox),
    ("files", "/files", &["DELETE", "GET", "PUT"], Who::Sandbox),
    ("files", "/files/list", &["GET"], Who::Sandbox),
    ("files", "/files/mkdir", &["POST"], Who::Sandbox),
    ("signed_urls", "/files/download", &["GET"], Who::Signed),
    (
        "signed_urls",
        "/files/download-url",
        &["POST"],
        Who::Sandbox,
    ),
    ("signed_urls", "/files/upload", &["PUT"], Who::Signed),
    ("signed_urls", "/files/upload-url", &["POST"], Who::Sandbox),
    ("logs", "/logs", &["GET"], Who::Sandbox),
    ("history", "/sessions", &["GET"], Who::Key),
    ("health", "/readyz", &["GET"], Who::Anybody),
    ("pty", "/pty", &["POST"], Who::Sandbox),
    ("pty", "/pty/{session}", &["DELETE", "GET"], Who::Sandbox),
    ("pty", "/pty/{session}/resize", &["POST"], Who::Sandbox),
    ("identity", "/whoami", &["GET"], Who::Key),
    ("projects", "/projects", &["GET", "POST"], Who::Key),
    (
        "projects",
        "/projects/{id}",
        &["DELETE", "GET", "PUT"],
        Who::Key,
    ),
    ("projects", "/projects/{id}/secrets", &["GET"], Who::Key),
    (
        "projects",
        "/projects/{id}/secrets/{name}",
        &["DELETE", "PUT"],
        Who::Key,
    ),
    (
        "projects",
        "/projects/{id}/secrets/{name}/revoke",
        &["POST"],
        Who::Key,
    ),
    ("sandbox_life", "/autoscale", &["GET", "PUT"], Who::Sandbox),
    ("sandbox_life", "/hibernate", &["POST"], Who::Sandbox),
    ("sandbox_life", "/limits", &["PUT"], Who::Sandbox),
    ("sandbox_life", "/power-cycle", &["POST"], Who::Sandbox),
    ("sandbox_life", "/reboot", &["POST"], Who::Sandbox),
    ("sandbox_life", "/scale", &["POST"], Who::Sandbox),
    (
        "sandbox_life",
        "/scaling-lock",
        &["GET", "PUT"],
        Who::Sandbox,
    ),
    ("sandbox_life", "/tags", &["GET"], Who::Key),
    ("sandbox_life", "/tags", &["GET", "PUT"], Who::Sandbox),
    ("sandbox_life", "/wake", &["POST"], Who::Sandbox),
    ("sandboxes", "", &["DELETE", "GET"], Who::Sandbox),
    ("sandboxes", "/allowed-hosts", &["GET"], Who::Sandbox),
    ("sandboxes", "/sandboxes", &["GET", "POST"], Who::Key),
    ("sandboxes", "/timeout", &["POST"], Who::Sandbox),
    ("sandboxes", "/token/refresh", &["POST"], Who::Sandbox),
    (
        "secret_stores",
        "/secret-stores",
        &["GET", "POST"],
        Who::Key,
    ),
    (
        "secret_stores",
        "/secret-stores/{id}",
        &["DELETE", "GET", "PUT"],
        Who::Key,
    ),
    (
        "secret_stores",
        "/secret-stores/{id}/secrets",
        &["GET"],
        Who::Key,
    ),
    (
        "secret_stores",
        "/secret-stores/{id}/secrets/{name}",
        &["DELETE", "PUT"],
        Who::Key,
    ),
    (
        "secret_stores",
        "/secret-stores/{id}/secrets/{name}/revoke",
        &["POST"],
        Who::Key,
    ),
];

#[derive(Clone, Copy, PartialEq)]
enum Who {
    Anybody,
    /// Below `/api`.
    Key,
    /// With a key too, and not below `/api`.
    Origin,
    /// Below `/api/sandboxes/{id}` and `/sandboxes/{id}`.
    Sandbox,
    /// In the same places, for whoever has a signature.
    Signed,
    /// On the socket of the server's machine, and nowhere else.
    Socket,
}

/// Goal: no route is forgotten: the table above is what the source declares, and each of its
/// requests is refused without a key and with a wrong one.
#[actix_rt::test]
async fn no_route_answers_without_a_credential() {
    let declared: BTreeSet<_> = ROUTES
        .iter()
        .map(|(file, path, methods, _)| format!("{file} {path} {}", methods.join(",")))
        .collect();
    assert_eq!(
        declared,
        routes_of_the_source(),
        "left: this table, right: src/http"
    );

    let server = Server::start();
    let nobody = server.api().without_key();
    let stranger = nobody.with_key(&KEY.replace("aa", "cc"));
    for (_, path, methods, who) in ROUTES {
        let below: &[&str] = match who {
            Who::Anybody => continue,
            Who::Socket => {
                server.api().get(path).await.refused(404, "no such route");
                continue;
            }
            Who::Key => &["/api"],
            Who::Origin => &[""],
            Who::Sandbox | Who::Signed => &["/api/sandboxes/{id}", "/sandboxes/{id}"],
        };
        for (prefix, method) in below
            .iter()
            .flat_map(|at| methods.iter().map(move |m| (at, m)))
        {
            let path = format!("{prefix}{path}")
                .replace("{id}", "sb-01m806v6r12w1bmtyq39z8xdwq")
                .replace(['{', '}'], "");
            if *who == Who::Signed {
                let far = "path=a&expires=9999999999";
                let forged = format!("{path}?{far}&signature={}", "0".repeat(64));
                for caller in [&nobody, &stranger, &server.api()] {
                    let reply = caller.call(method, &forged, None).await;
                    reply.refused(403, "invalid signature");
                }
                continue;
            }
            nobody
                .call(method, &path, None)
                .await
                .refused(401, "missing API key");
            stranger
                .call(method, &path, None)
                .await
                .refused(401, "invalid API key");
        }
    }
    for (path, body) in [
        ("/health", json!({ "status": "ok" })),
        ("/healthz", json!({ "status": "alive" })),
    ] {
        assert_eq!(nobody.get(path).await.ok(200).json(), body);
    }
    assert_eq!(
        nobody.get("/readyz").await.ok(200).json()["status"],
        "ready"
    );
}

/// Goal: every path tells which methods it has, and has HEAD where it has GET; both without a body
/// that the caller did not ask for.
#[actix_rt::test]
async fn every_path_tells_its_methods() {
    let server = Server::start();
    let nobody = server.api().without_key();
    for (_, path, methods, who) in ROUTES {
        let below = match who {
            Who::Socket => continue,
            Who::Anybody | Who::Origin => "",
            Who::Key => "/api",
            Who::Sandbox | Who::Signed => "/api/sandboxes/{id}",
        };
        let path = format!("{below}{path}")
            .replace("{id}", "sb-01m806v6r12w1bmtyq39z8xdwq")
            .replace(['{', '}'], "");
        let reply = nobody.call("BREW", &path, None).await;
        reply.refused(405, "method not allowed");
        let mut told: BTreeSet<_> = reply.header("allow").split(", ").collect();
        assert_eq!(told.remove("HEAD"), methods.contains(&"GET"), "{path}");
        assert_eq!(told, methods.iter().copied().collect(), "{path}");
        let head = nobody.call("HEAD", &path, None).await;
        let wanted = match methods.contains(&"GET") {
            true => nobody.get(&path).await.status,
            false => 405,
        };
        assert_eq!((head.status, head.text.as_str()), (wanted, ""), "{path}");
    }

    let api = server.api();
    let id = api.project(&json!({ "name": "p" })).await;
    for path in ["/api/projects".to_owned(), format!("/api/projects/{id}")] {
        let (head, whole) = (api.call("HEAD", &path, None).await, api.get(&path).await);
        assert_eq!((head.status, head.text.as_str()), (200, ""), "{path}");
        let length = whole.text.len().to_string();
        assert_eq!(head.header("content-length"), length, "{path}");
        assert_eq!(head.header("content-type"), whole.header("content-type"));
        // The connection is still in step: the next reply on it is read as its own.
        assert_eq!(api.get(&path).await.text, whole.text);
    }
    let made = api.call("HEAD", "/api/nope", None).await;
    assert_eq!((made.status, made.text.as_str()), (404, ""));
}

/// `file path METHODS` of every `web::resource("…")` in `src/http`.
fn routes_of_the_source() -> BTreeSet<String> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http");
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).expect("src/http") {
        let path = entry.expect("an entry").path();
        let file = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or_default()
            .to_owned();
        let text = std::fs::read_to_string(&path).expect("source");
        let mut pieces = text.split("web::resource(").skip(1);
        for piece in &mut pieces {
            // `health` registers its two fixed replies in a loop; the test above asks for both.
            let Some(piece) = piece.strip_prefix('"') else {
                assert_eq!(file, "health", "a route's path must be a literal");
                continue;
            };
            let (at, rest) = piece.split_once('"').expect("a closed literal");
            let routes = rest.split(';').next().unwrap_or_default();
            let verbs = ["DELETE", "GET", "PATCH", "POST", "PUT"];
            let used = verbs
                .into_iter()
                .filter(|verb| routes.contains(&format!("web::{}()", verb.to_lowercase())));
            found.insert(format!(
                "{file} {at} {}",
                used.collect::<Vec<_>>().join(",")
            ));
            assert!(
                !routes.contains("default_service"),
                "{file} {at}: other methods are answered in one place"
            );
        }
    }
    found
}

/// Goal: a key works in each of its slots, and says whose it is.
#[actix_rt::test]
async fn a_key_is_taken_from_header_bearer_and_query() {
    let server = Server::start_with_two_orgs();
    let nobody = server.api().without_key();
    let bearer = nobody.with_header("authorization", &format!("Bearer {KEY}"));
    let query = format!("/api/whoami?api_key={KEY}");
    let me = server.api().get("/api/whoami").await.ok(200).json();
    assert_eq!(me["org_name"], "default");
    assert_eq!((&me["user_id"], &me["email"]), (&Value::Null, &Value::Null));
    assert!(me["org_id"].as_str().is_some_and(is_uuid_v7));
    assert_eq!(bearer.get("/api/whoami").await.ok(200).json(), me);
    assert_eq!(nobody.get(&query).await.ok(200).json(), me);
    let other = server.other().get("/api/whoami").await.ok(200).json();
    assert_eq!(other["org_name"], "other");
    assert_ne!(other["org_id"], me["org_id"]);
}

/// Goal: request ids and CORS work on every kind of reply; errors have the envelope (sections 1, 3).
#[actix_rt::test]
async fn every_reply_has_a_request_id_and_cors() {
    let server = Server::start();
    let api = server.api();
    let named = api
        .with_header("x-request-id", "my-id-1")
        .with_header("origin", "https://x.test");
    for (method, path, status) in [
        ("GET", "/api/projects", 200),
        ("GET", "/api/projects/x", 400),
        ("GET", "/api/nope", 404),
        ("PATCH", "/api/projects", 405),
        ("GET", "/health", 200),
    ] {
        let reply = named.call(method, path, None).await.ok(status);
        assert_eq!(reply.header("x-request-id"), "my-id-1", "{path}");
        assert!(
            !reply.header("access-control-allow-origin").is_empty(),
            "{path}"
        );
        let exposed = reply.header("access-control-expose-headers");
        for header in ["x-request-id", "idempotent-replayed", "retry-after"] {
            let mut names = exposed.split(',').map(str::trim);
            let there = names.any(|name| name.eq_ignore_ascii_case(header));
            assert!(there, "{path}: pages may read {header}, of {exposed}");
        }
        let made = api.call(method, path, None).await.ok(status);
        assert!(!made.header("x-request-id").is_empty(), "{path}");
    }
    let refused = named.without_key().with_header("x-request-id", "my-id-2");
    assert_eq!(
        refused
            .get("/api/projects")
            .await
            .ok(401)
            .header("x-request-id"),
        "my-id-2"
    );
    let long = "i".repeat(129);
    let reply = api
        .with_header("x-request-id", &long)
        .get("/health")
        .await
        .ok(200);
    assert_ne!(
        reply.header("x-request-id"),
        long,
        "an over-long id is not echoed"
    );

    let preflight = api
        .without_key()
        .with_header("origin", "https://x.test")
        .with_header("access-control-request-method", "PUT")
        .with_header(
            "access-control-request-headers",
            "x-api-key, content-type, idempotency-key",
        );
    for path in [
        "/api/projects",
        "/api/secret-stores/x/secrets/A",
        "/sandboxes/x/exec/run",
    ] {
        let reply = preflight.call("OPTIONS", path, None).await.ok(200);
        assert_eq!(
            reply.header("access-control-allow-origin"),
            "https://x.test",
            "{path}"
        );
        assert!(
            reply.header("access-control-allow-methods").contains("PUT"),
            "{path}"
        );
        let headers = reply
            .header("access-control-allow-headers")
            .to_ascii_lowercase();
        assert!(
            ["x-api-key", "content-type", "idempotency-key"]
                .iter()
                .all(|name| headers.contains(name)),
            "{path}"
        );
        assert!(!reply.header("x-request-id").is_empty(), "{path}");
    }
}

/// Goal: the audit trail has who did what, newest first, in pages that join without gap, and only
/// the caller's own organization.
#[actix_rt::test]
async fn the_audit_trail_is_the_organizations_own() {
    let server = Server::start_with_two_orgs();
    let (api, other) = (server.api(), server.other());
    let id = api.project(&json!({ "name": "a" })).await;
    other.project(&json!({ "name": "theirs" })).await;
    api.put(&format!("/api/projects/{id}"), &json!({ "cpuCount": 2 }))
        .await
        .ok(200);
    let path = format!("/api/audit/events?entity={id}");
    let kinds = |page: &Value| -> Vec<String> {
        let events = page["events"].as_array().expect("events").iter();
        events
            .map(|event| event["type"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    let trail = api.get(&path).await.ok(200).json();
    assert_eq!(kinds(&trail), ["project.updated.v1", "project.created.v1"]);
    assert_eq!(trail["nextBefore"], Value::Null);
    assert_eq!(trail["events"][0]["data"]["cpuCount"], 2);
    assert_eq!(trail["events"][0]["actor"]["kind"], "api");
    let only = api
        .get("/api/audit/events?type=project.created")
        .await
        .json();
    assert_eq!(kinds(&only), ["project.created.v1"]);

    let whole = api.get("/api/audit/events?limit=500").await.json();
    assert!(
        !whole.to_string().contains("theirs"),
        "another organization's event"
    );
    let (mut joined, mut before) = (Vec::new(), String::new());
    loop {
        let page = api
            .get(&format!("/api/audit/events?limit=1{before}"))
            .await
            .ok(200)
            .json();
        joined.extend(page["events"].as_array().expect("events").clone());
        match page["nextBefore"].as_u64() {
            Some(position) => before = format!("&before={position}"),
            None => break,
        }
    }
    assert_eq!(json!(joined), whole["events"]);
}

async fn names_of(api: &Api, path: &str) -> Vec<String> {
    let rows = api.get(path).await.ok(200).json();
    let rows = rows.as_array().expect("a list").iter();
    rows.map(|row| row["name"].as_str().expect("a name").to_owned())
        .collect()
}

fn is_uuid_v7(text: &str) -> bool {
    uuid::Uuid::parse_str(text).is_ok_and(|id| id.get_version_num() == 7)
}

fn is_utc_time(text: &str) -> bool {
    use time::format_description::well_known::Rfc3339;
    time::OffsetDateTime::parse(text, &Rfc3339).is_ok_and(|at| at.offset().is_utc())
}
