//! The packet rules of a sandbox, written to nf_tables by raw nfnetlink.
//!
//! In the words of `nft`, for a sandbox with network (without it the first table is left out):
//!
//! ```text
//! table ip oc   { chain nat { type nat hook output priority -100;
//!                   ip daddr 127.0.0.0/8 return
//!                   ip daddr 10.0.2.15 return
//!                   meta l4proto tcp redirect to :65001
//!                   udp dport 53 redirect to :65053 } }
//! table inet oc { chain out { type filter hook output priority 0; policy drop;
//!                   meta nfproto ipv4 ip daddr 127.0.0.0/8 accept
//!                   meta nfproto ipv4 ip daddr 10.0.2.15 accept
//!                   ct direction reply accept
//!                   meta l4proto tcp reject with tcp reset
//!                   reject with icmpx type admin-prohibited } }
//! ```
//!
//! They are the second fence only: the first is that no interface leads out of the namespace.

use std::io;
use std::net::Ipv4Addr;

use super::netlink::{Batch, Body, CREATE};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
/// Add behind the rules already there.
const APPEND: u16 = 0x800;

const FAMILY_NONE: u8 = 0;
const FAMILY_INET: u8 = 1;
const FAMILY_IPV4: u8 = 2;
const HOOK_OUTPUT: u32 = 3;
const TABLE: &str = "oc";

const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const RETURN: u32 = -5i32 as u32;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Register 1, the only one these rules use.
const REGISTER: u32 = 1;

/// One condition or action of a rule.
enum Expr {
    /// The packet is IPv4.
    IsIpv4,
    /// Its destination lies in this network.
    To(Ipv4Addr, Ipv4Addr),
    /// Its transport protocol.
    Protocol(u8),
    /// Its destination port.
    Port(u16),
    /// It answers a packet that was let through.
    IsReply,
    /// Ends the walk through the chain.
    Verdict(u32),
    /// Sends it to this local port instead.
    Redirect(u16),
    /// Refuses it with a TCP reset.
    Reset,
    /// Refuses it with "administratively prohibited", in IPv4 or IPv6 terms.
    Reject,
}

/// Sets the rules in the caller's network namespace. `ports` are the TCP and the name stub's
/// port to redirect to; `None` redirects nothing, so that all is rejected.
pub fn apply(own: Ipv4Addr, ports: Option<(u16, u16)>) -> io::Result<()> {
    let loopback = (Ipv4Addr::new(127, 0, 0, 0), Ipv4Addr::new(255, 0, 0, 0));
    let own = (own, Ipv4Addr::BROADCAST);
    let mut batch = Batch::default();
    batch.bracket(BATCH_BEGIN, |m| generation(m, FAMILY_NONE, SUBSYSTEM));
    if let Some((tcp, dns)) = ports {
        table(&mut batch, FAMILY_IPV4);
        chain(&mut batch, FAMILY_IPV4, "nat", "nat", -100, ACCEPT);
        for (net, mask) in [loopback, own] {
            let rule = [Expr::To(net, mask), Expr::Verdict(RETURN)];
            self::rule(&mut batch, FAMILY_IPV4, "nat", &rule);
        }
        let rule = [Expr::Protocol(TCP), Expr::Redirect(tcp)];
        self::rule(&mut batch, FAMILY_IPV4, "nat", &rule);
        let rule = [Expr::Protocol(UDP), Expr::Port(53), Expr::Redirect(dns)];
        self::rule(&mut batch, FAMILY_IPV4, "nat", &rule);
    }
    table(&mut batch, FAMILY_INET);
    chain(&mut batch, FAMILY_INET, "out", "filter", 0, DROP);
    for (net, mask) in [loopback, own] {
        let rule = [Expr::IsIpv4, Expr::To(net, mask), Expr::Verdict(ACCEPT)];
        self::rule(&mut batch, FAMILY_INET, "out", &rule);
    }
    rule(
        &mut batch,
        FAMILY_INET,
        "out",
        &[Expr::IsReply, Expr::Verdict(ACCEPT)],
    );
    rule(
        &mut batch,
        FAMILY_INET,
        "out",
        &[Expr::Protocol(TCP), Expr::Reset],
    );
    rule(&mut batch, FAMILY_INET, "out", &[Expr::Reject]);
    batch.bracket(BATCH_END, |m| generation(m, FAMILY_NONE, SUBSYSTEM));
    batch.send(Some(rustix::net::netlink::NETFILTER))
}

/// The fixed part of every nfnetlink message.
fn generation(m: &mut Body<'_>, family: u8, resource: u16) {
    let [high, low] = resource.to_be_bytes();
    m.raw(&[family, 0, high, low]);
}

fn table(batch: &mut Batch, family: u8) {
    batch.message(NEW_TABLE, CREATE, |m| {
        generation(m, family, 0);
        m.text(1, TABLE);
    });
}

fn chain(batch: &mut Batch, family: u8, name: &str, kind: &str, priority: i32, policy: u32) {
    batch.message(NEW_CHAIN, CREATE, |m| {
        generation(m, family, 0);
        m.text(1, TABLE);
        m.text(3, name);
        m.nest(4, |m| {
            m.be32(1, HOOK_OUTPUT);
            m.be32(2, priority as u32);
        });
        m.be32(5, policy);
        m.text(7, kind);
    });
}

fn rule(batch: &mut Batch, family: u8, chain: &str, expressions: &[Expr]) {
    batch.message(NEW_RULE, CREATE | APPEND, |m| {
        generation(m, family, 0);
        m.text(1, TABLE);
        m.text(2, chain);
        m.nest(4, |m| {
            for expression in expressions {
                expression.write(m);
            }
        });
    });
}

impl Expr {
    fn write(&self, list: &mut Body<'_>) {
        match *self {
            Expr::IsIpv4 => {
                meta(list, 15);
                compare(list, &[FAMILY_IPV4]);
            }
            Expr::Protocol(protocol) => {
                meta(list, 16);
                compare(list, &[protocol]);
            }
            Expr::To(network, mask) => {
                payload(list, 1, 16, 4);
                element(list, "bitwise", |m| {
                    m.be32(1, REGISTER);
                    m.be32(2, REGISTER);
                    m.be32(3, 4);
                    m.nest(4, |m| m.attr(1, &mask.octets()));
                    m.nest(5, |m| m.attr(1, &[0; 4]));
                });
                compare(list, &network.octets());
            }
            Expr::Port(port) => {
                payload(list, 2, 2, 2);
                compare(list, &port.to_be_bytes());
            }
            Expr::IsReply => {
                element(list, "ct", |m| {
                    m.be32(1, REGISTER);
                    m.be32(2, 1);
                });
                compare(list, &[1]);
            }
            Expr::Verdict(code) => element(list, "immediate", |m| {
                m.be32(1, 0);
                m.nest(2, |m| m.nest(2, |m| m.be32(1, code)));
            }),
            Expr::Redirect(port) => {
                element(list, "immediate", |m| {
                    m.be32(1, REGISTER);
                    m.nest(2, |m| m.attr(1, &port.to_be_bytes()));
                });
                element(list, "redir", |m| {
                    m.be32(1, REGISTER);
                    m.be32(2, REGISTER);
                    m.be32(3, 2);
                });
            }
            Expr::Reset => element(list, "reject", |m| {
                m.be32(1, 1);
                m.attr(2, &[0]);
            }),
            Expr::Reject => element(list, "reject", |m| {
                m.be32(1, 2);
                m.attr(2, &[3]);
            }),
        }
    }
}

fn element(list: &mut Body<'_>, name: &str, data: impl FnOnce(&mut Body<'_>)) {
    list.nest(1, |m| {
        m.text(1, name);
        m.nest(2, data);
    });
}

/// Loads a property of the packet itself.
fn meta(list: &mut Body<'_>, key: u32) {
    element(list, "meta", |m| {
        m.be32(1, REGISTER);
        m.be32(2, key);
    });
}

/// Loads bytes of the network (1) or transport (2) header.
fn payload(list: &mut Body<'_>, base: u32, offset: u32, length: u32) {
    element(list, "payload", |m| {
        m.be32(1, REGISTER);
        m.be32(2, base);
        m.be32(3, offset);
        m.be32(4, length);
    });
}

/// Goes on only when what was loaded equals `value`.
fn compare(list: &mut Body<'_>, value: &[u8]) {
    element(list, "cmp", |m| {
        m.be32(1, REGISTER);
        m.be32(2, 0);
        m.nest(3, |m| m.attr(1, value));
    });
}
