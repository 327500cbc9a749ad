//! Addresses a sandbox may not reach: everything that is not public unicast.
//!
//! IPv6 is closed by default: only 2000::/3 is public, minus the ranges in it that lead somewhere
//! else (6to4, Teredo) or nowhere. Mapped and translated IPv4 (::ffff/96, 64:ff9b::/96) lie
//! outside and need no unwrapping to be refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

const fn v4(a: u8, b: u8, c: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), prefix)
}

const fn v6(a: u16, b: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), prefix)
}

/// IANA's special-purpose registry, with multicast and the reserved block.
const SPECIAL_V4: [(Ipv4Net, &str); 16] = [
    (v4(0, 0, 0, 8), "unspecified"),
    (v4(10, 0, 0, 8), "private"),
    (v4(100, 64, 0, 10), "carrier-grade NAT"),
    (v4(127, 0, 0, 8), "loopback"),
    (v4(169, 254, 0, 16), "link-local"),
    (v4(172, 16, 0, 12), "private"),
    (v4(192, 0, 0, 24), "protocol assignment"),
    (v4(192, 0, 2, 24), "documentation"),
    (v4(192, 88, 99, 24), "6to4 relay"),
    (v4(192, 168, 0, 16), "private"),
    (v4(198, 18, 0, 15), "benchmarking"),
    (v4(198, 51, 100, 24), "documentation"),
    (v4(203, 0, 113, 24), "documentation"),
    (v4(224, 0, 0, 4), "multicast"),
    (v4(255, 255, 255, 24), "broadcast"),
    (v4(240, 0, 0, 4), "reserved"),
];

const PUBLIC_V6: Ipv6Net = v6(0x2000, 0, 3);

/// What inside 2000::/3 is not public.
const SPECIAL_V6: [(Ipv6Net, &str); 4] = [
    (v6(0x2001, 0, 23), "protocol assignment or tunnel"),
    (v6(0x2001, 0xdb8, 32), "documentation"),
    (v6(0x2002, 0, 16), "6to4"),
    (v6(0x3fff, 0, 20), "documentation"),
];

/// What `ip` is for, when that is not the public internet.
pub(crate) fn special_range(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(ip) => SPECIAL_V4
            .iter()
            .find(|(net, _)| net.contains(&ip))
            .map(|row| row.1),
        IpAddr::V6(ip) if !PUBLIC_V6.contains(&ip) => Some(match ip {
            Ipv6Addr::LOCALHOST => "loopback",
            _ if ip.is_multicast() => "multicast",
            _ if ip.is_unicast_link_local() => "link-local",
            _ if ip.is_unique_local() => "private",
            _ => "reserved or translated",
        }),
        IpAddr::V6(ip) => SPECIAL_V6
            .iter()
            .find(|(net, _)| net.contains(&ip))
            .map(|row| row.1),
    }
}

/// What forbids `ip`, unless the operator lists it.
pub(crate) fn forbidden_range(ip: IpAddr, allowed: &[IpNet]) -> Option<&'static str> {
    if allowed.iter().any(|net| net.contains(&ip)) {
        None
    } else {
        special_range(ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::Host;

    /// Every known spelling of an inner address is refused, as an address or as a name.
    #[test]
    fn inner_addresses_are_refused_in_every_spelling() {
        let special = [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "169.254.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.0.170",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "192.168.255.255",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "[::1]",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:8.8.8.8",
            "::127.0.0.1",
            "::7f00:1",
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:0:7f00:1::",
            "2001:10::1",
            "2001:20::1",
            "2001:1ff::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "2002:a00:1::",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fdff::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "ff0e::1",
            "4000::1",
            "::ffff:0:127.0.0.1",
        ];
        for text in special {
            match text.parse::<Host>().unwrap() {
                Host::Address(ip) => assert!(special_range(ip).is_some(), "{text}"),
                Host::Name(name) => panic!("{name} is an address"),
            }
        }
        for spelling in [
            "2130706433",
            "017700000001",
            "0x7f000001",
            "0x7f.0x0.0x0.0x1",
            "0177.0.0.1",
            "127.1",
            "127.0.1",
            "127.0.0.1.",
            "10.1",
            "0",
            "0x0",
            "00.0.0.0",
            "0xa9fea9fe",
            "2852039166",
            "0251.0376.0251.0376",
            "169.254.43518",
            "127.0.0.01",
            "[::1%25eth0]",
            "fe80::1%eth0",
            "::1%lo",
            "[127.0.0.1",
            "localhost:80",
            "１２７.0.0.1",
            "127。0。0。1",
            "127.0.0.1\0",
        ] {
            assert!(spelling.parse::<Host>().is_err(), "{spelling}");
        }
    }

    #[test]
    fn public_addresses_pass_and_the_operator_decides_about_the_rest() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "192.167.0.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450::1",
            "2001:200::1",
            "2003::1",
            "2600::",
        ] {
            assert_eq!(special_range(text.parse().unwrap()), None, "{text}");
        }
        let allowed = ["10.1.0.0/16".parse().unwrap()];
        assert_eq!(forbidden_range("10.1.2.3".parse().unwrap(), &allowed), None);
        assert_eq!(
            forbidden_range("10.2.2.3".parse().unwrap(), &allowed),
            Some("private")
        );
        let mapped = "::ffff:10.1.2.3".parse().unwrap();
        assert!(forbidden_range(mapped, &allowed).is_some());
    }
}
