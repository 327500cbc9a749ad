//! `oc proxy` as a process: policy file, signals, audit lines, and its attack suite.

mod check;
mod naive;
mod narrowed;
mod program;
mod run;
