//! The driver as an ordinary user.
