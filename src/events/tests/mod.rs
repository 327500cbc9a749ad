//! The log as a whole, through its public face: one file a promise.

mod append;
mod backup;
mod branch;
mod checkpoint;
mod crash;
mod damage;
mod export;
mod failure;
mod keys;
mod repair;
mod rotate;
mod shred;
mod subscribe;
pub mod support;
