//! The sealing proxy end to end: real TLS hosts on loopback, real TLS clients, real bytes.
//!
//! Every test ends with [`world::World::finish`], which searches every decision and every log
//! line of the process for the secret values used.

mod again;
mod awkward;
mod bodies;
mod clients;
mod codings;
mod edges;
mod ending;
mod granted;
mod grants;
mod grpc;
mod hosts;
mod http2;
mod lengths;
mod multipart;
mod narrowing;
mod refusals;
mod revoking;
mod seal;
mod two;
mod upstreams;
mod websocket;
mod wire;
mod world;
