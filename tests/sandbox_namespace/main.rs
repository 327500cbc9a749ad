//! The namespace driver against hostile programs: each test starts real sandboxes and looks from
//! inside through the guest, as an agent's commands would.

mod egress;
mod isolation;
mod lifecycle;
mod limits;
mod rootless;
mod stats;
mod support;
