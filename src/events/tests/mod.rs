//! The log as a whole, through its public face: one file a promise.

mod append;
mod branch;
mod crash;
mod damage;
mod export;
mod failure;
mod keys;
mod subscribe;
pub mod support;
