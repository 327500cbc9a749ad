//! The story of the demo, step by step: set-up, the sealed secret, the governed network.

use std::ffi::OsString;
use std::fs;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use tokio::time::sleep;

use super::Broken;
use super::canary::Canary;
use super::inside::{self, ENVIRONMENTS, Reply, SECRET, Tool, Way, is_token};
use super::narrator::Narrator;
use super::proofs;
use super::scene::Scene;
use super::stage::Stage;
use super::upstream::{ECHO, ECHO_GZIP, Upstream};
use crate::cli::client::{Api, body, body_with_capacity, decode};
use crate::cli::private_server::{PrivateServer, failed};

/// The name of the stand-in API; `.test` exists nowhere.
pub const API_HOST: &str = "api.example.test";
/// A host that is not on the project's list.
pub const BLOCKED_HOST: &str = "blocked.example.test";
/// A rotated value must arrive within this time (the promise of the API).
const ROTATION_MS_MAX: u64 = 15_000;
/// Time between two tries.
const RETRY_MS: u64 = 100;

/// Tells the whole story.
pub async fn tell(stage: &mut Stage, story: &mut Narrator) -> Result<(), Broken> {
    start_upstream(stage, story).await?;
    start_server(stage, story).await?;
    create_project(stage, story).await?;
    let mut scene = create_sandbox(stage, story).await?;
    sealed_inside(&mut scene, story).await?;
    real_outside(&mut scene, story).await?;
    refused(&scene, story).await?;
    rotated(&mut scene, story).await?;
    survives_a_crash(&mut scene, story).await?;
    proofs::audit(&scene, story).await?;
    proofs::nowhere_else(&scene, story).await
}

async fn start_upstream(stage: &mut Stage, story: &mut Narrator) -> Result<(), Broken> {
    story.step("A stand-in HTTPS API that records and repeats the key it is sent");
    let upstream = Upstream::start(API_HOST).await?;
    let ca = stage.folder.path().join("ca.pem");
    fs::write(&ca, &upstream.ca_pem).map_err(failed(|| format!("write {}", ca.display())))?;
    story.note(&format!(
        "https://{API_HOST}:{} on 127.0.0.1",
        upstream.port
    ));
    stage.upstream = Some(upstream);
    Ok(())
}

async fn start_server(stage: &mut Stage, story: &mut Narrator) -> Result<(), Broken> {
    story.step("A private server");
    let folder = stage.folder.path();
    let mut arguments: Vec<OsString> = Vec::new();
    // Loopback is refused to sandboxes unless the operator says otherwise; the stand-in is there.
    arguments.extend(["--egress-allow-private".into(), "127.0.0.0/8".into()]);
    arguments.extend([
        "--egress-host".into(),
        format!("{API_HOST}=127.0.0.1").into(),
    ]);
    arguments.extend(["--egress-root".into(), folder.join("ca.pem").into()]);
    let started = Instant::now();
    let server = PrivateServer::start(folder, arguments).await?;
    let pid = server.pid().unwrap_or_default();
    story.note(&format!(
        "`oc serve`, process {pid}, ready after {} ms",
        started.elapsed().as_millis()
    ));
    stage.server = Some(server);
    Ok(())
}

#[derive(Deserialize)]
struct Identified {
    id: String,
}

async fn create_project(stage: &mut Stage, story: &mut Narrator) -> Result<(), Broken> {
    story.step("A project with a secret and a list of allowed hosts");
    let api = api(stage)?;
    let fields = json!({ "name": "demo", "egressAllowlist": [API_HOST] });
    let reply = api
        .send(Method::POST, &["projects"], Some(body(&fields)?))
        .await?;
    let project: Identified = decode(reply)?;
    stage.project = Some(project.id.clone());
    let canary = Canary::generate()?;
    set_secret(&api, &project.id, &canary).await?;
    let listed = api.get(&["projects", &project.id, "secrets"]).await?;
    let seen = format!(
        "value {}; the server lists {listed} and no values",
        canary.masked()
    );
    story.check(
        listed == json!([SECRET]),
        &format!("{SECRET} is set, for {API_HOST} only"),
        &seen,
    );
    stage.canaries.push(canary);
    Ok(())
}

async fn set_secret(api: &Api, project: &str, canary: &Canary) -> Result<(), Broken> {
    #[derive(serde::Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Fields<'a> {
        value: &'a str,
        allowed_hosts: [&'a str; 1],
    }
    let fields = Fields {
        value: canary.expose(),
        allowed_hosts: [API_HOST],
    };
    let path = ["projects", project, "secrets", SECRET];
    api.send(Method::PUT, &path, Some(body_with_capacity(&fields, 1024)?))
        .await?;
    Ok(())
}

#[derive(Deserialize)]
struct Created {
    #[serde(rename = "sandboxID")]
    id: String,
    status: String,
}

async fn create_sandbox<'a>(
    stage: &'a mut Stage,
    story: &mut Narrator,
) -> Result<Scene<'a>, Broken> {
    story.step("A sandbox of that project");
    let api = api(stage)?;
    let started = Instant::now();
    let request = body(&json!({ "project": "demo" }))?;
    let created: Created = decode(
        api.send(Method::POST, &["sandboxes"], Some(request))
            .await?,
    )?;
    let first = inside::run(&api, &created.id, "id -un").await?;
    let seen = format!(
        "{} is {}; first command as user {} after {} ms",
        created.id,
        created.status,
        first.stdout.trim(),
        started.elapsed().as_millis()
    );
    story.check(
        created.status == "running" && first.exit_code == 0,
        "it runs commands",
        &seen,
    );
    let tool = Tool::find(&api, &created.id).await?.ok_or_else(|| {
        Broken::Unexpected("the sandbox has neither curl nor python3 nor node".to_owned())
    })?;
    story.note(&format!("calls from inside are made with {}", tool.name()));
    Ok(Scene {
        stage,
        api,
        sandbox: created.id,
        tool,
    })
}

async fn sealed_inside(scene: &mut Scene<'_>, story: &mut Narrator) -> Result<(), Broken> {
    story.step("Inside, the secret is a sealed token");
    let token = scene.token().await?;
    story.check(is_token(&token), &format!("echo ${SECRET}"), &token);
    scene.stage.token = token;
    let all = inside::run(&scene.api, &scene.sandbox, ENVIRONMENTS)
        .await?
        .stdout;
    let has_token = !scene.stage.token.is_empty() && all.contains(&scene.stage.token);
    let seen = format!(
        "{} lines, searched from outside: only the token",
        all.lines().count()
    );
    let claim = "no environment of any process inside holds the value";
    story.check(has_token && !scene.search()?.is_in(&all), claim, &seen);
    Ok(())
}

async fn real_outside(scene: &mut Scene<'_>, story: &mut Narrator) -> Result<(), Broken> {
    story.step("A call from inside arrives with the real value, and comes back sealed");
    for (path, how) in [(ECHO, "plain"), (ECHO_GZIP, "compressed")] {
        let arrived = scene.call(path, Way::Proxy).await?;
        let claim = format!("the API received the real value ({path})");
        story.check(arrived.is_real, &claim, &arrived.seen);
        let claim = format!("the {how} reply inside holds the token, in header and body");
        story.check(arrived.came_back_sealed, &claim, &arrived.reply);
    }
    Ok(())
}

async fn refused(scene: &Scene<'_>, story: &mut Narrator) -> Result<(), Broken> {
    story.step("What is not allowed is refused, with a reason");
    let url = format!("https://{BLOCKED_HOST}/");
    let proxied = scene.run(&scene.tool.call(&url, Way::Proxy)).await?;
    let claim = format!("{BLOCKED_HOST} by way of the proxy: 403");
    story.check(proxied.contains("403"), &claim, &scene.shown(&proxied)?);
    let direct = scene.run(&scene.tool.call(&url, Way::Direct)).await?;
    check_refusal(
        story,
        "a program that ignores the proxy variables: 403 and why",
        &scene.shown(&direct)?,
    );
    let raw = scene.run(&inside::raw_socket(BLOCKED_HOST)).await?;
    check_refusal(story, "a bare TCP socket: 403 and why", &scene.shown(&raw)?);
    let allowed = scene.call(ECHO, Way::Direct).await?;
    let claim =
        "without proxy variables the allowed API still gets the value, the sandbox the token";
    story.check(
        allowed.is_real && allowed.came_back_sealed,
        claim,
        &allowed.seen,
    );
    Ok(())
}

fn check_refusal(story: &mut Narrator, claim: &str, output: &str) {
    let reply = Reply::parse(output);
    let holds = reply.as_ref().is_some_and(Reply::is_readable_refusal);
    let body = reply.filter(|_| holds).map(|reply| reply.body);
    story.check(holds, claim, body.as_deref().unwrap_or(output));
}

async fn rotated(scene: &mut Scene<'_>, story: &mut Narrator) -> Result<(), Broken> {
    story.step("The secret is rotated while the sandbox runs");
    let canary = Canary::generate()?;
    let project = scene.stage.project.clone().unwrap_or_default();
    set_secret(&scene.api, &project, &canary).await?;
    let masked = canary.masked();
    scene.stage.canaries.push(canary);
    let started = Instant::now();
    let arrived = loop {
        let arrived = scene.call(ECHO, Way::Proxy).await?;
        if arrived.is_real || started.elapsed() > Duration::from_millis(ROTATION_MS_MAX) {
            break arrived;
        }
        sleep(Duration::from_millis(RETRY_MS)).await;
    };
    let seen = format!("{masked} after {} ms", started.elapsed().as_millis());
    let seen = if arrived.is_real {
        &seen
    } else {
        &arrived.seen
    };
    story.check(
        arrived.is_real && arrived.came_back_sealed,
        "the new value arrives",
        seen,
    );
    let token = scene.token().await?;
    story.check(
        token == scene.stage.token,
        "the token inside is the same",
        &token,
    );
    Ok(())
}

async fn survives_a_crash(scene: &mut Scene<'_>, story: &mut Narrator) -> Result<(), Broken> {
    story.step("kill -9 of the server: nothing acknowledged is lost");
    let missing = || Broken::Unexpected("the server is gone".to_owned());
    let before = inside::run(
        &scene.api,
        &scene.sandbox,
        "cut -d. -f1 /proc/uptime >/tmp/mark; cat /tmp/mark",
    )
    .await?;
    proofs::recorded(scene).await?;
    let server = scene.stage.server.as_mut().ok_or_else(missing)?;
    let killed = server.pid().unwrap_or_default();
    server.crash().await?;
    let started = Instant::now();
    server.restart().await?;
    scene.api = server.api.clone();
    let seen = format!(
        "process {killed} killed, process {} ready after {} ms",
        server.pid().unwrap_or_default(),
        started.elapsed().as_millis()
    );
    let listed: Vec<Created> = decode(scene.api.get(&["sandboxes"]).await?)?;
    let is_there = listed
        .iter()
        .any(|found| found.id == scene.sandbox && found.status == "running");
    story.check(is_there, "the list shows the sandbox, running", &seen);
    let after = scene.patiently("cat /tmp/mark").await?;
    let claim = "it is the same sandbox: its files are there and commands run";
    story.check(
        !after.trim().is_empty() && after == before.stdout,
        claim,
        "",
    );
    let arrived = scene.call(ECHO, Way::Proxy).await?;
    let claim = "the call works as before: real value outside, same token inside";
    story.check(
        arrived.is_real && arrived.came_back_sealed,
        claim,
        &arrived.seen,
    );
    Ok(())
}

fn api(stage: &Stage) -> Result<Api, Broken> {
    let server = stage.server.as_ref();
    server
        .map(|server| server.api.clone())
        .ok_or_else(|| Broken::Unexpected("no server".to_owned()))
}
