//! The log as a whole, through its public face: one file a promise.

mod append;
mod checkpoint;
mod crash;
mod damage;
mod export;
mod failure;
mod keys;
mod rotate;
mod shred;
mod subscribe;
mod support;
