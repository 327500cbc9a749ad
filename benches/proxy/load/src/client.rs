//! One case against one target.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::connect::{Route, RouteArgs, Sender};
use crate::{Result, process};

/// Time before anything is counted.
const WARM_UP: Duration = Duration::from_millis(200);
/// Length of the answer to a small request.
const SMALL_BYTES: u64 = 1024;
/// Length of the body of a small upload.
const POST_BYTES: u64 = 4096;
/// A transfer before the measured one, so that buffers and windows have grown.
const PRIMER_BYTES: u64 = 4 * 1024 * 1024;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Case {
    /// GETs of 1 KiB on kept connections
    Get,
    /// POSTs of 4 KiB on kept connections
    Post,
    /// A connection for each GET
    New,
    /// One long answer
    Down,
    /// One long request
    Up,
    /// What the upstream host says the value is, as the client sees it
    Echo,
}

#[derive(clap::Args)]
pub struct Args {
    case: Case,
    #[command(flatten)]
    route: RouteArgs,
    /// Connections at once
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// How long to measure; transfers are begun until then
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Length of a transfer
    #[arg(long, default_value_t = 0)]
    bytes: u64,
    /// Processes of the proxy
    #[arg(long)]
    pid: Vec<u32>,
}

pub async fn run(args: Args) -> Result<()> {
    let route = Rc::new(Route::new(args.route.clone())?);
    let found = match args.case {
        Case::Get | Case::Post | Case::New => requests(&args, route).await?,
        Case::Down | Case::Up => transfers(&args, &route).await?,
        Case::Echo => {
            let body = route.open().await?.read(route.request("/echo", 0)?).await?;
            json!({ "body": String::from_utf8_lossy(&body) })
        }
    };
    println!("{found}");
    Ok(())
}

/// What the connections of a run share. One thread: no locks.
#[derive(Default)]
struct Recorder {
    recording: Cell<bool>,
    ended: Cell<bool>,
    latencies_ns: RefCell<Vec<u64>>,
}

impl Recorder {
    fn count(&self, begun: Instant) {
        if self.recording.get() {
            let elapsed = begun.elapsed().as_nanos();
            self.latencies_ns
                .borrow_mut()
                .push(u64::try_from(elapsed).unwrap_or(u64::MAX));
        }
    }
}

async fn requests(args: &Args, route: Rc<Route>) -> Result<serde_json::Value> {
    let recorder = Rc::new(Recorder::default());
    let mut work: Vec<JoinHandle<std::result::Result<(), String>>> = Vec::new();
    let mut opened = Vec::new();
    for _ in 0..args.connections {
        opened.push(match args.case {
            Case::New => None,
            _ => Some(route.open().await?),
        });
    }
    for sender in opened {
        let (route, recorder, case) = (route.clone(), recorder.clone(), args.case);
        work.push(tokio::task::spawn_local(async move {
            let done = match sender {
                Some(sender) => keep_asking(&route, sender, case, &recorder).await,
                None => keep_connecting(&route, &recorder).await,
            };
            done.map_err(|error| error.to_string())
        }));
    }
    sleep(WARM_UP).await;
    let cpu = process::cpu_ns(&args.pid)?;
    let begun = Instant::now();
    recorder.recording.set(true);
    sleep(Duration::from_secs_f64(args.seconds)).await;
    recorder.recording.set(false);
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = process::cpu_ns(&args.pid)? - cpu;
    recorder.ended.set(true);
    for task in work {
        task.await??;
    }
    let mut latencies = recorder.latencies_ns.take();
    latencies.sort_unstable();
    let count = latencies.len();
    if count == 0 {
        return Err("no request ended in time".into());
    }
    let quantile = |share: f64| latencies[((count - 1) as f64 * share) as usize] as f64 / 1e3;
    Ok(json!({
        "requests": count,
        "per_second": count as f64 / seconds,
        "p50_us": quantile(0.5),
        "p99_us": quantile(0.99),
        "cpu_us": cpu as f64 / 1e3 / count as f64,
    }))
}

async fn keep_asking(route: &Route, mut on: Sender, case: Case, to: &Recorder) -> Result<()> {
    let small = format!("/bytes/{SMALL_BYTES}");
    while !to.ended.get() {
        let request = match case {
            Case::Post => route.request("/sink", POST_BYTES)?,
            _ => route.request(&small, 0)?,
        };
        let begun = Instant::now();
        on.exchange(request).await?;
        to.count(begun);
    }
    Ok(())
}

async fn keep_connecting(route: &Route, to: &Recorder) -> Result<()> {
    let small = format!("/bytes/{SMALL_BYTES}");
    while !to.ended.get() {
        let begun = Instant::now();
        let mut on = route.open().await?;
        on.exchange(route.request(&small, 0)?).await?;
        to.count(begun);
    }
    Ok(())
}

async fn transfers(args: &Args, route: &Route) -> Result<serde_json::Value> {
    let mut on = route.open().await?;
    transfer(&mut on, route, args.case, PRIMER_BYTES).await?;
    process::reset_peak(&args.pid)?;
    let memory = process::memory_kib(&args.pid, "VmRSS")?;
    let cpu = process::cpu_ns(&args.pid)?;
    let begun = Instant::now();
    let mut bytes = 0;
    while bytes == 0 || begun.elapsed().as_secs_f64() < args.seconds {
        transfer(&mut on, route, args.case, args.bytes).await?;
        bytes += args.bytes;
    }
    let mib = bytes as f64 / (1024.0 * 1024.0);
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = process::cpu_ns(&args.pid)? - cpu;
    let peak = process::memory_kib(&args.pid, "VmHWM")?;
    Ok(json!({
        "mib_per_second": mib / seconds,
        "cpu_us_per_mib": cpu as f64 / 1e3 / mib,
        "memory_kib": memory,
        "growth_kib": peak.saturating_sub(memory),
    }))
}

async fn transfer(on: &mut Sender, route: &Route, case: Case, bytes: u64) -> Result<()> {
    let (path, body) = match case {
        Case::Up => ("/sink".to_owned(), bytes),
        _ => (format!("/bytes/{bytes}"), 0),
    };
    let came = on.exchange(route.request(&path, body)?).await?;
    if case == Case::Down && came != bytes {
        return Err(format!("{came} bytes came instead of {bytes}").into());
    }
    Ok(())
}
