//! The commands of `oc` as a user runs them: the real program against a recording server.

mod commands;
mod exec;
mod failures;
mod stand_in;
