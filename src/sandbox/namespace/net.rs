//! The network a sandbox sees: a loopback, an `eth0` with a default route, and no way out.
//!
//! Both ends of the `eth0` pair are inside the same namespace, so nothing is connected to
//! anything; the rules of [`super::nft`] turn every TCP connection and name query to two sockets
//! that are opened here, inside, and served by the supervisor, outside. No process of ours and no
//! socket file is inside where hostile code could touch it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::netlink::{Batch, CREATE};
use super::nft;
use super::sys::{Step, StepError};

/// The sandbox's own address.
pub const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// Named as the gateway; nothing answers there.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The name server programs are told of. Any other is redirected to the same stub.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Where redirected connections arrive. Above the range programs are given ports from, so that
/// it rarely meets one of theirs.
pub const LISTENER_PORT: u16 = 65001;
/// Where redirected name queries arrive.
pub const NAME_STUB_PORT: u16 = 65053;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 256;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const LOOPBACK_INDEX: u32 = 1;
/// Fixed and high, since some kernels make tunnel devices in each new namespace.
const ETH0_INDEX: u32 = 100;
const PEER_INDEX: u32 = 101;
const UP: u32 = 1;

/// The two sockets through which everything leaves.
#[derive(Debug)]
pub struct Sockets {
    /// Listening TCP socket; the original target of a connection is its `SO_ORIGINAL_DST`.
    pub listener: OwnedFd,
    /// UDP socket of the name stub.
    pub names: OwnedFd,
}

/// Sets up the caller's fresh network namespace. Without `network` there are no sockets and
/// everything is rejected.
pub fn set_up(network: bool) -> Result<Option<Sockets>, StepError> {
    disable_ipv6();
    links().step("set up the links of the network namespace")?;
    let ports = network.then_some((LISTENER_PORT, NAME_STUB_PORT));
    nft::apply(OWN, ports).step("set the packet rules (nf_tables with redirect and reject)")?;
    if !network {
        return Ok(None);
    }
    let listener = bound(SocketType::STREAM, LISTENER_PORT).step("open the egress listener")?;
    rustix::net::listen(&listener, BACKLOG).step("listen for egress")?;
    let names = bound(SocketType::DGRAM, NAME_STUB_PORT).step("open the name stub's socket")?;
    Ok(Some(Sockets { listener, names }))
}

/// Best effort: where it can't be done the packet rules, which cover both families, reject
/// IPv6 instead.
fn disable_ipv6() {
    for scope in ["all", "default"] {
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1");
    }
}

fn bound(kind: SocketType, port: u16) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, kind, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
    Ok(socket)
}

fn links() -> std::io::Result<()> {
    let mut batch = Batch::default();
    batch.message(RTM_NEWLINK, 0, |m| m.raw(&interface(LOOPBACK_INDEX, UP)));
    batch.message(RTM_NEWLINK, CREATE, |m| {
        m.raw(&interface(ETH0_INDEX, 0));
        m.text(3, "eth0");
        m.nest(18, |m| {
            m.text(1, "veth");
            m.nest(2, |m| {
                m.nest(1, |m| {
                    m.raw(&interface(PEER_INDEX, 0));
                    m.text(3, "eth0-far");
                });
            });
        });
    });
    // Not set up as they are made: one end can't be while the other is missing.
    for index in [ETH0_INDEX, PEER_INDEX] {
        batch.message(RTM_NEWLINK, 0, |m| m.raw(&interface(index, UP)));
    }
    batch.message(RTM_NEWADDR, CREATE, |m| {
        m.raw(&[libc::AF_INET as u8, 24, 0, 0]);
        m.raw(&ETH0_INDEX.to_ne_bytes());
        m.attr(2, &OWN.octets());
        m.attr(1, &OWN.octets());
    });
    batch.message(RTM_NEWROUTE, CREATE, |m| {
        // family, destination and source length, tos, main table, static, universe, unicast
        m.raw(&[libc::AF_INET as u8, 0, 0, 0, 254, 4, 0, 1]);
        m.raw(&0u32.to_ne_bytes());
        m.attr(5, &GATEWAY.octets());
        m.attr(4, &ETH0_INDEX.to_ne_bytes());
    });
    batch.send(None)
}

/// `struct ifinfomsg` of an interface, with the flags to set.
fn interface(index: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&flags.to_ne_bytes());
    bytes
}
