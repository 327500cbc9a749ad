//! The log as a whole, through its public face: one file a promise.

mod append;
mod contract;
mod crash;
mod damage;
mod export;
mod failure;
mod faults;
mod index;
mod keys;
mod subscribe;
mod support;
