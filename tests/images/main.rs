//! Images and snapshots on a real server with real sandboxes; where this machine can't have any, the
//! tests say so and stop.

#[path = "../common/mod.rs"]
mod common;

mod building;
mod cli;
mod crashes;
mod kit;
mod mirror;
mod snapshots;
