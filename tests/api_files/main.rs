//! Files of a real sandbox, through the API. Where this machine can't have any, the tests say so and
//! stop.

#[path = "../common/mod.rs"]
mod common;

mod edges;
mod signed;
mod uploads;
