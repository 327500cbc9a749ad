//! Images: root file systems that are built step by step from a manifest, with or without a name
//! (contract sections 13 and 14).
//!
//! `manifest` reads and checks, `hashes` names what is the same, `image` is the aggregate, `requests`
//! what callers ask, `builder` carries a build out with `steps`, `layers` keeps the results of steps,
//! `rows` looks them up, `feed` and `builds` are what is alive of a build.

mod builder;
mod builds;
mod defaults;
mod feed;
mod hashes;
mod image;
mod layers;
mod manifest;
mod output;
mod requests;
mod rows;
mod steps;

pub use builds::{Build, Builds};
pub use defaults::ImageDefaults;
pub use feed::{BuildLine, Ended, Follower};
pub use image::{Image, ImagePhase};
pub(in crate::actors) use layers::DEFAULTS;
pub use manifest::{BASE_NAMES, Manifest, ManifestBody};
pub use requests::{ImageSource, ImageWithManifest};

#[cfg(test)]
pub(in crate::actors) use image::ImageCommand;
