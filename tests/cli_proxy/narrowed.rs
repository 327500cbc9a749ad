//! What a policy file narrows: where a value may stand, and whom a host trusts and is shown.

use std::fs;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::program::Proxy;
use crate::run::{POLICY, VALUE, ask, host, host_for, write_policy};

/// Goal: a value goes where its placement lets it, and nowhere else. Method: the same request with
/// the token in `x-key` (a GET of `/`) under placements that fit it and that do not.
#[test]
fn a_value_stays_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let host = host(folder);
    write_policy(folder, POLICY);
    let proxy = Proxy::start(folder);
    let token = proxy.ready["secrets"][0]["token"].as_str().unwrap();
    let ca = folder.join("ca.pem");
    for (placement, given) in [
        ("headers = [\"x-key\"]", true),
        ("headers = [\"authorization\"]", false),
        ("methods = [\"GET\", \"HEAD\"]", true),
        ("methods = [\"POST\"]", false),
        ("path_prefix = \"/\"", true),
        ("path_prefix = \"/v1/\"", false),
        (
            "max_per_request = 1, exclusive = true, keep_cookies = true",
            true,
        ),
    ] {
        let narrowed = format!("[\"api.test\"]\nplacement = {{ {placement} }}\n");
        write_policy(folder, &POLICY.replace("[\"api.test\"]\n", &narrowed));
        assert_eq!(proxy.line()["event"], "reloaded");
        let answer = ask(&proxy, &host, &ca, token);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{placement}: {answer}");
        assert!(answer.contains(token) && !answer.contains(VALUE));
        let heads = host.heads.lock().unwrap();
        let head = heads.last().unwrap();
        assert_eq!(head.contains(VALUE), given, "{placement}");
        assert_eq!(head.contains(token), !given, "{placement}");
    }
}

/// Goal: a host with an authority of its own, which asks clients who they are, is spoken to by an
/// entry for it, and not without one, nor by an entry for another host.
#[test]
fn a_host_is_shown_the_certificate_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let authority = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&authority).unwrap();
    let issuer = Issuer::new(params, authority);
    let key = KeyPair::generate().unwrap();
    let client = CertificateParams::new(vec!["us".to_owned()]).unwrap();
    let client = client.signed_by(&key, &issuer).unwrap();
    fs::write(folder.join("us.pem"), client.pem()).unwrap();
    fs::write(folder.join("us.key"), key.serialize_pem()).unwrap();
    let host = host_for(folder, Some(root.der().clone()));
    let policy = |hosts: &str, shown: bool| {
        let shown = match shown {
            true => "client_certificate = \"us.pem\"\nclient_key = \"us.key\"\n",
            false => "",
        };
        let without = POLICY.replace("extra_roots = [\"root.pem\"]\n", "");
        format!(
            "{without}[[egress.tls]]\nhosts = \"{hosts}\"\nextra_roots = [\"root.pem\"]\n{shown}"
        )
    };
    write_policy(folder, &policy("*.test", true));
    let proxy = Proxy::start(folder);
    let token = proxy.ready["secrets"][0]["token"].as_str().unwrap();
    let ca = folder.join("ca.pem");
    let answer = ask(&proxy, &host, &ca, token);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(host.heads.lock().unwrap()[0].contains(VALUE));
    for (hosts, shown) in [("api.test", false), ("other.test", true)] {
        write_policy(folder, &policy(hosts, shown));
        assert_eq!(proxy.line()["event"], "reloaded");
        let answer = ask(&proxy, &host, &ca, token);
        assert!(answer.starts_with("HTTP/1.1 502 "), "{hosts}: {answer}");
    }
    let heads = host.heads.lock().unwrap();
    assert!(heads.iter().skip(1).all(|head| !head.contains(VALUE)));
}
