//! What callers ask of images and snapshots: build, look, make a sandbox, delete.

use std::sync::Arc;

use time::OffsetDateTime;

use super::builds::Build;
use super::defaults::ImageDefaults;
use super::feed::{Ended, Feed};
use super::image::{Image, ImageCommand, ImagePhase};
use super::layers::DEFAULTS;
use super::manifest::{BASE_NAMES, Manifest, ManifestBody};
use crate::actors::aggregate::Reject;
use crate::actors::checkpoint::{Checkpoint, CheckpointPhase};
use crate::actors::checkpointing::REQUESTED_KIND;
use crate::actors::create::{CreateSandbox, Inherited};
use crate::actors::entity::Failure;
use crate::actors::idempotency::{Created, Keyed};
use crate::actors::platform::{Caller, Platform};
use crate::actors::sandbox::Sandbox;
use crate::actors::sealing::{internal, off_runtime};
use crate::events::Actor as Who;
use crate::events::families::{ImageFailed, ImageRequested, Origin};
use crate::ids::{CheckpointId, ImageId};
use crate::secret::{SECRET_VALUE_BYTES_MAX, SecretValue};

const MANIFEST_KIND: &str = "image.requested.v1";

/// What a sandbox is made from.
#[derive(Debug, Clone)]
pub enum ImageSource {
    /// A snapshot, by its name.
    Snapshot(String),
    /// An image that was asked for.
    Image(ImageId),
}

/// An image with the manifest it was built from, as JSON.
pub struct ImageWithManifest {
    /// The image.
    pub image: Arc<Image>,
    /// Its manifest.
    pub manifest: String,
}

impl Platform {
    /// Has a named image built; its build goes on whether anybody listens or not.
    ///
    /// # Errors
    /// The manifest or the name is none, or the name is taken by one that did not fail.
    pub async fn create_snapshot(
        self: &Arc<Self>,
        caller: &Caller,
        name: String,
        body: ManifestBody,
    ) -> Result<Arc<Build>, Failure> {
        if name.is_empty() {
            return Err(Reject::invalid("name is required").into());
        }
        let manifest = self.check_manifest(body)?;
        let _order = self.builds.order.lock().await;
        self.begin_build(caller, Some(name), manifest).await
    }

    /// The image of a manifest: the one that is there, the one that is being built, or a new one.
    pub async fn ask_image(
        self: &Arc<Self>,
        caller: &Caller,
        body: ManifestBody,
    ) -> Result<Arc<Build>, Failure> {
        let manifest = self.check_manifest(body)?;
        let hash = manifest.content_hash();
        let _order = self.builds.order.lock().await;
        if let Some(found) = self.catalog.image_with_hash(&caller.org, &hash) {
            let there = self.images.inspect(&Image::stream(&found)).await?;
            match there.phase {
                ImagePhase::Ready => {
                    let build = Build::of(found, caller);
                    let feed: &Feed = &build.feed;
                    feed.say(0, "resolve", format!("image {hash}"));
                    feed.say(0, "cache_hit", "the whole image is cached");
                    feed.end(Ended::Done);
                    return Ok(build);
                }
                ImagePhase::Building => {
                    if let Some(build) = self.builds.find(&found) {
                        return Ok(build);
                    }
                }
                _ => {}
            }
        }
        self.begin_build(caller, None, manifest).await
    }

    fn check_manifest(&self, body: ManifestBody) -> Result<Manifest, Failure> {
        let manifest = Manifest::check(body)?;
        if !BASE_NAMES.contains(&manifest.base.as_str()) {
            let text = format!("template not found: {}", manifest.base);
            return Err(Reject::NotFound(text).into());
        }
        Ok(manifest)
    }

    /// Records the intent and starts the work. The caller holds the order.
    async fn begin_build(
        self: &Arc<Self>,
        caller: &Caller,
        name: Option<String>,
        manifest: Manifest,
    ) -> Result<Arc<Build>, Failure> {
        let image_id = ImageId::generate();
        let stream = Image::stream(&image_id);
        let (platform, own, json) = (self.clone(), stream.clone(), manifest.to_json());
        let sealed = off_runtime(move || {
            let pieces = json.as_bytes().chunks(SECRET_VALUE_BYTES_MAX);
            let sealed = pieces.enumerate().map(|(number, piece)| {
                let value = SecretValue::new(piece.to_vec());
                platform.seal(&own, MANIFEST_KIND, &format!("manifest-{number}"), &value)
            });
            sealed.collect::<Result<Vec<_>, _>>()
        });
        let hash = manifest.content_hash();
        let request = ImageCommand::Request(Box::new(ImageRequested {
            image_id,
            org_id: caller.org,
            name: name.clone(),
            content_hash: hash.clone(),
            manifest: sealed.await?,
            checkpoint_id: CheckpointId::generate(),
            at: OffsetDateTime::now_utc(),
        }));
        // Found before it is on record: the reconciler must not take it for left over.
        let build = Build::of(image_id, caller);
        self.builds.begin(&build);
        let who = caller.who();
        let asked = self.execute(&self.images, &stream, request, &who);
        if let Err(failure) = asked.await {
            self.builds.finish(&build);
            self.shred_or_keep(&stream).await;
            return Err(failure);
        }
        let what = name.as_deref().map_or("image", |_| "snapshot");
        build.feed.say(0, "resolve", format!("{what} {hash}"));
        let replaced = self
            .catalog
            .failed_images(&caller.org, name.as_deref(), &hash);
        tokio::spawn(
            self.clone()
                .build_and_replace(build.clone(), manifest, replaced),
        );
        Ok(build)
    }

    /// Builds, and forgets the failures that this one takes the place of: last, since what they have
    /// of results may be of use.
    async fn build_and_replace(
        self: Arc<Self>,
        build: Arc<Build>,
        manifest: Manifest,
        replaced: Vec<ImageId>,
    ) {
        let caller = build.caller;
        let platform = self.clone();
        self.build_image(build, manifest).await;
        for old in replaced {
            if let Err(error) = platform.delete_image(&caller, &old).await {
                tracing::warn!(%error, image = %old, "a failed image was not removed");
            }
        }
    }

    /// A snapshot that sandboxes can be made from, as a build that has ended.
    ///
    /// # Errors
    /// There is none, or it is not ready.
    pub async fn ready_snapshot(&self, caller: &Caller, name: &str) -> Result<Arc<Build>, Failure> {
        let (id, shown) = self.named_snapshot(caller, name)?;
        let image = self.images.inspect(&Image::stream(&id)).await?;
        if image.phase != ImagePhase::Ready {
            return Err(Reject::invalid(format!("{shown} not ready")).into());
        }
        let build = Build::of(id, caller);
        build.feed.say(0, "resolve", shown);
        build.feed.say(0, "create", "making the sandbox");
        build.feed.end(Ended::Done);
        Ok(build)
    }

    /// The snapshot that a sandbox shall be made from, and how it is called in messages.
    fn named_snapshot(&self, caller: &Caller, name: &str) -> Result<(ImageId, String), Reject> {
        let shown: String = name.chars().filter(|c| !c.is_control()).take(128).collect();
        let found = self.catalog.snapshot_named(&caller.org, name);
        let missing = || Reject::invalid(format!("snapshot \"{shown}\" not found"));
        Ok((found.ok_or_else(missing)?, format!("snapshot \"{shown}\"")))
    }

    /// The image of a build that has ended.
    ///
    /// # Errors
    /// [`Failure::BuildFailed`] with the reason.
    pub async fn built(
        &self,
        caller: &Caller,
        build: &Build,
    ) -> Result<ImageWithManifest, Failure> {
        match build.feed.wait().await {
            Ended::Done => self.get_image(caller, &build.image).await,
            Ended::Failed(reason) => Err(Failure::BuildFailed(reason)),
            Ended::Abandoned => Err(Failure::Unavailable),
        }
    }

    /// An image with its manifest.
    pub async fn get_image(
        &self,
        caller: &Caller,
        id: &ImageId,
    ) -> Result<ImageWithManifest, Failure> {
        let stream = Image::stream(id);
        let image = self.images.inspect(&stream).await?;
        let sealed = image.visible_to(&caller.org)?.manifest.clone();
        let keyring = self.keyring.clone();
        let manifest = off_runtime(move || {
            let mut json = Vec::new();
            for (number, piece) in sealed.iter().enumerate() {
                let name = format!("manifest-{number}");
                let context = crate::events::SealContext {
                    event_kind: MANIFEST_KIND,
                    name: &name,
                };
                let piece = keyring.unseal(&stream, &context, piece).map_err(internal)?;
                json.extend_from_slice(piece.expose());
            }
            String::from_utf8(json).map_err(internal)
        });
        Ok(ImageWithManifest {
            manifest: manifest.await?,
            image,
        })
    }

    /// The image with this name, of those that have one.
    pub fn find_snapshot(&self, caller: &Caller, name: &str) -> Result<ImageId, Failure> {
        let found = self.catalog.snapshot_named(&caller.org, name);
        found.ok_or_else(|| Reject::not_found("snapshot").into())
    }

    /// The same, or the image with this id.
    pub fn find_image(&self, caller: &Caller, name_or_id: &str) -> Result<ImageId, Failure> {
        let by_id = || name_or_id.parse().ok();
        let found = self.catalog.snapshot_named(&caller.org, name_or_id);
        found
            .or_else(by_id)
            .ok_or_else(|| Reject::not_found("image").into())
    }

    /// An organization's images, newest first; with `named`, those that have a name.
    pub async fn list_images(
        &self,
        caller: &Caller,
        named: bool,
    ) -> Result<Vec<ImageWithManifest>, Failure> {
        let mut all = Vec::new();
        for id in self.catalog.images(&caller.org, named) {
            match self.get_image(caller, &id).await {
                Ok(one) => all.push(one),
                // Deleted meanwhile.
                Err(Failure::Reject(_)) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(all)
    }

    /// The checkpoint that an image is, for its patches.
    ///
    /// # Errors
    /// It is not ready.
    pub async fn checkpoint_of_image(
        &self,
        caller: &Caller,
        id: &ImageId,
    ) -> Result<CheckpointId, Failure> {
        let image = self.images.inspect(&Image::stream(id)).await?;
        let details = image.visible_to(&caller.org)?;
        match image.phase {
            ImagePhase::Ready => Ok(details.checkpoint_id),
            _ => Err(Reject::invalid("snapshot not ready").into()),
        }
    }

    /// Deletes an image. Sandboxes made from it stay; what no other image uses of it goes.
    pub async fn delete_image(
        self: &Arc<Self>,
        caller: &Caller,
        id: &ImageId,
    ) -> Result<(), Failure> {
        let stream = Image::stream(id);
        let command = ImageCommand::Delete {
            org: caller.org,
            at: OffsetDateTime::now_utc(),
        };
        self.execute(&self.images, &stream, command, &caller.who())
            .await?;
        self.shred_or_keep(&stream).await;
        match self.builds.find(id) {
            // Whoever builds it removes what there is.
            Some(build) => build.cancelled.cancel(),
            None => self.sweep_layers().await,
        }
        Ok(())
    }

    /// Makes a sandbox from an image, once for each key, and returns when it can run commands and the
    /// image's patches have run in it.
    pub async fn create_from_image(
        self: &Arc<Self>,
        caller: &Caller,
        mut request: CreateSandbox,
        source: ImageSource,
        keyed: Option<&Keyed>,
    ) -> Result<Created<Sandbox>, Failure> {
        let (id, shown) = match source {
            ImageSource::Image(id) => (id, "image".to_owned()),
            ImageSource::Snapshot(name) => self.named_snapshot(caller, &name)?,
        };
        let stream = Image::stream(&id);
        let image = self.images.inspect(&stream).await?;
        let checkpoint = image.visible_to(&caller.org)?.checkpoint_id;
        if image.phase != ImagePhase::Ready {
            return Err(Reject::invalid(format!("{shown} not ready")).into());
        }
        let (inherited, defaults, config) = self.disk_of(caller, &checkpoint).await?;
        request.inherited = Some(inherited);
        request.image = Some(defaults).filter(|defaults| !defaults.is_empty());
        let sized = request.memory_mb.is_some_and(|mb| mb > 0)
            || request
                .project
                .as_ref()
                .is_some_and(|name| !name.is_empty());
        if !sized {
            request.memory_mb = Some(config.memory_mb.into());
        }
        let disk = i64::from(config.disk_mb);
        if request.disk_mb.is_some_and(|asked| asked != disk) {
            let text = format!("diskMB of a sandbox made from an image is {disk}");
            return Err(Reject::invalid(text).into());
        }
        let made = self.create_sandbox(caller, request, keyed).await?;
        if made.replayed {
            return Ok(made);
        }
        let used = ImageCommand::Use {
            org: caller.org,
            at: OffsetDateTime::now_utc(),
        };
        if let Err(error) = self
            .execute(&self.images, &stream, used, &caller.who())
            .await
        {
            tracing::info!(%error, image = %id, "an image's use was not recorded");
        }
        self.with_patches(made, &caller.who()).await
    }

    /// The disk of a result or an image, as a sandbox inherits it, what the image says of processes,
    /// and the settings it was kept with.
    pub(super) async fn disk_of(
        self: &Arc<Self>,
        caller: &Caller,
        id: &CheckpointId,
    ) -> Result<
        (
            Inherited,
            ImageDefaults,
            crate::events::families::SandboxCreated,
        ),
        Failure,
    > {
        let stream = Checkpoint::stream(id);
        let state = self.checkpoints.inspect(&stream).await?;
        let details = state.visible_to(&caller.org)?.clone();
        if state.phase != CheckpointPhase::Ready {
            return Err(Reject::invalid("snapshot not ready").into());
        }
        let (platform, key, said) = (self.clone(), details.ca_key, details.image);
        let (key, defaults) = off_runtime(move || {
            let key = platform.unseal(&stream, REQUESTED_KIND, "ca-key", &key)?;
            let defaults = match said {
                None => ImageDefaults::default(),
                Some(said) => {
                    let said = platform.unseal(&stream, REQUESTED_KIND, DEFAULTS, &said)?;
                    serde_json::from_slice(said.expose())?
                }
            };
            Ok((key, defaults))
        })
        .await?;
        let inherited = Inherited {
            layers: Vec::new(),
            origin: Origin {
                checkpoint_id: *id,
                sandbox_id: details.config.sandbox_id.clone(),
            },
            revision: None,
            ca_certificate: details.ca_certificate,
            ca_key: Arc::new(key),
        };
        Ok((inherited, defaults, details.config))
    }

    /// Images without a name that nobody has used the longest make room.
    pub(super) async fn forget_surplus_images(self: &Arc<Self>, caller: &Caller) {
        let most = self.image_settings.cached_images_max;
        for id in self.catalog.surplus_images(&caller.org, most) {
            if let Err(error) = self.delete_image(caller, &id).await {
                tracing::warn!(%error, image = %id, "an unused image was not removed");
            }
        }
    }

    /// Settles what a crash left: images that nobody builds, and results that no image refers to.
    pub(in crate::actors) async fn reconcile_images(&self) {
        for (id, org) in self.catalog.images_in_building() {
            if self.builds.find(&id).is_some() {
                continue;
            }
            let who = Who {
                org: Some(org),
                ..Who::system()
            };
            let failed = ImageCommand::Fail(ImageFailed {
                reason: "the server stopped while it was built; ask for it again".to_owned(),
                at: OffsetDateTime::now_utc(),
            });
            let stream = Image::stream(&id);
            if let Err(error) = self.execute(&self.images, &stream, failed, &who).await {
                tracing::error!(%error, image = %id, "the image could not be settled");
            }
        }
        self.sweep_layers().await;
    }
}
