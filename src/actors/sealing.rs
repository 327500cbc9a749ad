//! Values under the data keys of streams: sealed, opened, and gone with their key. The keyring waits
//! for the disk, so whoever calls what blocks does it through [`off_runtime`].

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use time::OffsetDateTime;

use super::aggregate::Reject;
use super::entity::Failure;
use super::platform::{NewSecret, Platform};
use super::secrets::{SetSecret, check_hosts, check_placement, check_secret_name, kept_placement};
use crate::events::{SealContext, Sealed, StreamId};
use crate::ids::SecretId;
use crate::secret::{SECRET_VALUE_BYTES_MAX, SecretValue};

/// Streams that are deleted and have their data key still.
pub(super) type ToShred = Mutex<BTreeSet<StreamId>>;

impl Platform {
    /// Checks a secret and seals its value for `stream`. Everything is checked before the value is
    /// sealed, so that a refused request makes no data key.
    pub(super) async fn seal_secret(
        self: &Arc<Self>,
        stream: &StreamId,
        event_kind: &'static str,
        new: NewSecret,
    ) -> Result<SetSecret, Failure> {
        check_secret_name(&new.name)?;
        check_hosts("allowedHosts", &new.allowed_hosts)?;
        check_placement(new.placement.as_ref())?;
        let length = new.value.expose().len();
        if length == 0 {
            return Err(Reject::invalid("secret value is required").into());
        }
        if length > SECRET_VALUE_BYTES_MAX {
            let max = SECRET_VALUE_BYTES_MAX;
            return Err(
                Reject::invalid(format!("secret value must not exceed {max} bytes")).into(),
            );
        }
        let (platform, stream) = (self.clone(), stream.clone());
        off_runtime(move || {
            Ok(SetSecret {
                id: SecretId::generate(),
                sealed: platform.seal(&stream, event_kind, &new.name, &new.value)?,
                name: new.name,
                allowed_hosts: new.allowed_hosts,
                placement: kept_placement(new.placement),
                at: OffsetDateTime::now_utc(),
            })
        })
        .await
    }

    /// Seals a value for `stream`. Blocks: a stream's first use syncs the disk.
    pub(super) fn seal(
        &self,
        stream: &StreamId,
        event_kind: &str,
        name: &str,
        value: &SecretValue,
    ) -> Result<Sealed, Failure> {
        self.keyring
            .seal(stream, &SealContext { event_kind, name }, value)
            .map_err(internal)
    }

    /// Opens a value sealed for `stream`. Blocks for a look into the keyring.
    pub(super) fn unseal(
        &self,
        stream: &StreamId,
        event_kind: &str,
        name: &str,
        sealed: &Sealed,
    ) -> Result<SecretValue, Failure> {
        self.keyring
            .unseal(stream, &SealContext { event_kind, name }, sealed)
            .map_err(internal)
    }

    /// Destroys a stream's data key, off the runtime: it syncs the disk. Ciphertexts it opened leave
    /// the state snapshots too.
    pub(super) async fn shred(&self, stream: &StreamId) -> Result<(), Failure> {
        let (keyring, stream) = (self.keyring.clone(), stream.clone());
        let of = stream.clone();
        off_runtime(move || keyring.shred(&stream).map(drop).map_err(internal)).await?;
        self.snapshots.forget(&of).await;
        Ok(())
    }

    /// Destroys the data key of something that is deleted. The deletion is on disk, so a failure
    /// is not the caller's: the reconciler tries again until the key is gone.
    pub(super) async fn shred_or_keep(&self, stream: &StreamId) {
        if let Err(error) = self.shred(stream).await {
            tracing::error!(%error, %stream, "a data key could not be destroyed, trying again");
            let mut kept = self.to_shred.lock().unwrap_or_else(PoisonError::into_inner);
            kept.insert(stream.clone());
        }
    }

    /// Destroys the data keys that could not be destroyed before.
    pub(super) async fn shred_again(&self) {
        let kept =
            std::mem::take(&mut *self.to_shred.lock().unwrap_or_else(PoisonError::into_inner));
        for stream in kept {
            self.shred_or_keep(&stream).await;
        }
    }
}

/// Runs work that waits for the disk or takes long on a thread where it holds up nobody.
pub(super) async fn off_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(internal)?
}

pub(super) fn internal(error: impl std::fmt::Display) -> Failure {
    Failure::Internal(error.to_string())
}
