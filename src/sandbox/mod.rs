//! To be filled in.

/// The host side of the protocol with the program inside each sandbox.
pub mod guest;
