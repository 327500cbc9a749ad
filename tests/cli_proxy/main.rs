//! `oc proxy` as a process: policy file, signals, audit lines, and its attack suite.

mod program;
mod run;
