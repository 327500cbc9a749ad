//! Terminals as clients use them: real shells and programs in real sandboxes, over the API. Where
//! this machine can't have sandboxes or lacks a program, the tests say so.

mod cli;
#[path = "../common/mod.rs"]
mod common;
mod life;
mod programs;
mod screen;
mod sockets;
