//! A server that dies in the middle of a build.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::Server;
use crate::kit::{PATIENCE, boxes, copies, create, has_sandboxes, image, run};

/// Goal: after `kill -9` in a build nothing half built is left: the image has failed, its builder is
/// gone, finished results are kept and used, and the disk has what the records say. Method: killed at
/// several moments of the same build.
#[actix_rt::test]
async fn a_crash_leaves_a_build_whole_or_gone() {
    let mut server = Server::start();
    let mut api = server.api();
    if !has_sandboxes(&api).await {
        return;
    }
    let steps = [
        run("head -c 3000000 /dev/urandom > ~/one"),
        run("sleep 1; cp ~/one ~/two"),
        run("cmp ~/one ~/two"),
    ];
    for (round, after_ms) in [150u64, 600, 1200, 1900].into_iter().enumerate() {
        let body = json!({ "name": format!("round-{round}"), "image": image(&steps) });
        api.post("/api/snapshots?async=1", &body).await.ok(202);
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        server.kill();
        server.restart();
        api = server.api();
        let path = format!("/api/snapshots/round-{round}");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let row = api.get(&path).await.ok(200).json();
            let images = api.get("/api/images").await.ok(200).json();
            let settled = row["status"] != "building" && boxes(&server) == 0;
            if settled {
                let failed = row["errorMsg"]
                    .as_str()
                    .is_some_and(|why| why.contains("server stopped"));
                assert!(row["status"] == "ready" || failed, "{row}");
                assert!(images.as_array().is_some_and(|all| all.len() == round + 1));
                break;
            }
            assert!(
                Instant::now() < deadline,
                "{row} with {} boxes",
                boxes(&server)
            );
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
    // It can be built to its end, from whatever results there are.
    let (sandbox, told) = create(&api, &json!({ "image": image(&steps) })).await;
    assert_eq!(
        sandbox.run("cmp ~/one ~/two; ls ~").await,
        "one\ntwo",
        "{:?}",
        told.log
    );
    let images = api.get("/api/images").await.ok(200).json();
    for one in images.as_array().expect("a list") {
        let id = one["id"].as_str().expect("an id");
        api.delete(&format!("/api/images/{id}")).await.ok(204);
    }
    let deadline = Instant::now() + PATIENCE;
    while copies(&server) > 0 {
        assert!(
            Instant::now() < deadline,
            "{} copies are left",
            copies(&server)
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    api.verified_positions().await;
}
