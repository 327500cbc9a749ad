//! What is left of sandboxes: nothing. A program of its own, so that its open files can be counted.

#[path = "../common/mod.rs"]
mod common;
mod orphans;
mod rounds;
#[path = "../sandbox_namespace/support.rs"]
mod support;

/// Tests that count what this process has open take turns.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
