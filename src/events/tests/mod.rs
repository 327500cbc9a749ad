//! The log as a whole, through its public face: one file a promise.

mod append;
mod backup;
mod branch;
mod checkpoint;
mod contract;
mod crash;
mod damage;
mod export;
mod failure;
mod faults;
mod index;
mod keys;
mod repair;
mod replay;
mod rotate;
mod shred;
mod subscribe;
pub mod support;
