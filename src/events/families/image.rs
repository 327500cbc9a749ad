//! What happens to an image: a root file system that is built step by step from a manifest, with or
//! without a name. The manifest is here as ciphertext under the image's own data key: files of its
//! maker's are in it, and they go with the image. Each step's result is a checkpoint of its own, which
//! images share.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::family;
use crate::events::Sealed;
use crate::ids::{CheckpointId, ImageId, OrgId};

/// Intent: it shall be built.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageRequested {
    /// The image.
    pub image_id: ImageId,
    /// Its tenant.
    pub org_id: OrgId,
    /// Its name, unique among those of its tenant; absent: it is only kept for the next one who asks
    /// for the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// SHA-256 of what it is built from, lower-case hex.
    pub content_hash: String,
    /// The manifest's JSON, cut into pieces and sealed.
    pub manifest: Vec<Sealed>,
    /// The checkpoint that it will be.
    pub checkpoint_id: CheckpointId,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// It uses the result of a step, which is there or about to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageLayerAdded {
    /// What the result depends on: the steps up to this one, hashed.
    pub key: String,
    /// The result.
    pub checkpoint_id: CheckpointId,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// Outcome: sandboxes can be made from it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageReady {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// Outcome: it could not be built; what its steps before the failing one made is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageFailed {
    /// Why, with the end of the failing step's output.
    pub reason: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// A sandbox is made from it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageUsed {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// Nobody wants it any more; what no other image uses of it goes after this.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageDeleted {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

family! {
    /// Events of an image.
    ImageEvent {
        /// Intent to build.
        Requested(ImageRequested) = "image.requested.v1",
        /// Uses a step's result.
        LayerAdded(ImageLayerAdded) = "image.layer_added.v1",
        /// Built.
        Ready(ImageReady) = "image.ready.v1",
        /// Could not be built.
        Failed(ImageFailed) = "image.failed.v1",
        /// Used.
        Used(ImageUsed) = "image.used.v1",
        /// Gone.
        Deleted(ImageDeleted) = "image.deleted.v1",
    }
}
