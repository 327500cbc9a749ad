//! A bad neighbour: every connection its sandbox may have, each doing one of the cheap things that
//! are dear to a proxy, until ended.

use std::rc::Rc;
use std::time::Duration;

use clap::ValueEnum;
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

use crate::Result;
use crate::connect::{Route, RouteArgs};

/// Longest life of one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause after a refusal, so that the neighbour is not merely a loop of refused connects.
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Malice {
    /// Downloads that open to thousands of times their size
    Bomb,
    /// Connections cut in the middle of an answer
    Reset,
    /// Handshakes begun and dropped
    Handshake,
    /// A third of each
    All,
}

#[derive(clap::Args)]
pub struct Args {
    malice: Malice,
    #[command(flatten)]
    route: RouteArgs,
    #[arg(long, default_value_t = 256)]
    connections: usize,
}

pub async fn run(args: Args) -> Result<()> {
    let route = Rc::new(Route::new(args.route)?);
    let mut work = Vec::new();
    for number in 0..args.connections {
        let route = route.clone();
        let malice = match (args.malice, number % 3) {
            (Malice::All, 0) => Malice::Bomb,
            (Malice::All, 1) => Malice::Reset,
            (Malice::All, _) => Malice::Handshake,
            (one, _) => one,
        };
        work.push(tokio::task::spawn_local(async move {
            loop {
                // Being refused is the point of limits.
                if !matches!(
                    timeout(ATTEMPT_TIMEOUT, attempt(&route, malice)).await,
                    Ok(Ok(()))
                ) {
                    sleep(PAUSE).await;
                }
            }
        }));
    }
    println!("ready");
    for task in work {
        task.await?;
    }
    Ok(())
}

async fn attempt(route: &Route, malice: Malice) -> Result<()> {
    match malice {
        Malice::Bomb => {
            let mut on = route.open().await?;
            on.exchange(route.request("/bomb", 0)?).await?;
        }
        Malice::Reset => {
            let mut on = route.open().await?;
            let long = route.request("/bytes/1073741824", 0)?;
            let _ = timeout(Duration::from_millis(50), on.exchange(long)).await;
        }
        Malice::Handshake | Malice::All => {
            let mut stream = route.tcp().await?;
            // A record that announces a ClientHello and never brings it whole.
            stream
                .write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3])
                .await?;
            sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}
