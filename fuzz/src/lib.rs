//! The sealing proxy as the fuzz targets see it.
//!
//! `properties.rs` and `frames.rs` beside this file are modules of the proxy, which it takes in
//! when built for fuzzing.

#[allow(dead_code, unused_imports, unreachable_pub)]
#[path = "../../src/proxy/mod.rs"]
mod proxy;
#[allow(dead_code)]
#[path = "../../src/secret.rs"]
mod secret;

#[cfg(fuzzing)]
pub use proxy::fuzzing::*;
