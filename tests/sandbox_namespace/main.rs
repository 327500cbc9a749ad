//! The namespace driver against hostile programs: each test starts real sandboxes and looks from
//! inside through the guest, as an agent's commands would.

mod disk;
mod egress;
mod hostile;
mod isolation;
mod lifecycle;
mod limits;
mod rootless;
mod starvation;
mod stats;
mod support;
