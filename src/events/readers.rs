//! A small pool of read-only views, used from blocking threads.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::EngineError;
use super::view::View;

/// Views in the pool: reads beyond that many at once wait.
pub const READERS_MAX: usize = 4;

/// The pool. Every permit of the semaphore stands for one view in the list.
#[derive(Clone)]
pub struct Readers {
    idle: Arc<Mutex<Vec<View>>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    pub fn new(views: Vec<View>) -> Self {
        let permits = Arc::new(Semaphore::new(views.len()));
        Self {
            idle: Arc::new(Mutex::new(views)),
            permits,
        }
    }

    /// Runs `work` with a view of its own on a blocking thread.
    pub async fn run<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<EngineError> + Send + 'static,
        F: FnOnce(&View) -> Result<T, E> + Send + 'static,
    {
        let gone = |what: &str| E::from(EngineError::Io(what.to_owned()));
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|_| gone("the readers are closed"))?;
        let idle = Arc::clone(&self.idle);
        let task = tokio::task::spawn_blocking(move || {
            let lease = Lease::take(idle, permit);
            match &lease.view {
                Some(view) => work(view),
                None => Err(E::from(EngineError::Io("a reader is missing".into()))),
            }
        });
        task.await.map_err(|_| gone("a read was cut off"))?
    }
}

/// A view on loan: it goes back into the pool even when the work panics.
struct Lease {
    view: Option<View>,
    idle: Arc<Mutex<Vec<View>>>,
    _permit: OwnedSemaphorePermit,
}

impl Lease {
    fn take(idle: Arc<Mutex<Vec<View>>>, permit: OwnedSemaphorePermit) -> Self {
        let view = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Self {
            view,
            idle,
            _permit: permit,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Before the permit, which is dropped after this: a permit always finds a view.
        if let Some(view) = self.view.take() {
            self.idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(view);
        }
    }
}
