//! Judging hosts, and what is searched for at them.

use super::testing::secret;
use super::*;
use crate::proxy::placement::PlacementText;
use crate::proxy::placement::Why;

fn policy(allowlist: &[&str], network: bool) -> Policy {
    let allowlist = allowlist
        .iter()
        .map(|pattern| pattern.parse().unwrap())
        .collect();
    let secret = secret(SealedToken::generate(), "real-value-0001", "api.example");
    Policy::new(allowlist, vec![secret], network, true)
}

/// A value that was rotated away may lie at its host, and still be valid there.
#[test]
fn former_values_are_searched_for_after_a_rotation() {
    let token = SealedToken::generate();
    let policy = |value: &str| {
        let secret = secret(token, value, "api.example");
        Policy::new(Vec::new(), vec![secret], true, true)
    };
    let mut current = policy("real-value-0000");
    for turn in 1..=6 {
        current = policy(&format!("real-value-000{turn}")).following(&current);
    }
    let host = "api.example".parse().unwrap();
    let rules = current.rules_for(&host, true, false);
    let patterns = rules.patterns().unwrap();
    for turn in 0..=6 {
        let text = format!("<real-value-000{turn}>");
        let sealed = crate::proxy::reseal::reseal_all(patterns, &Arc::default(), text.as_bytes());
        assert_eq!(sealed.is_some(), turn >= 2, "{turn}");
    }
}

#[test]
fn hosts_are_judged_by_name() {
    let rule = |policy: &Policy, host: &str| {
        policy
            .judge(&host.parse().unwrap())
            .map_err(|refusal| refusal.rule())
    };
    let open = policy(&[], true);
    assert_eq!(rule(&open, "any.example"), Ok("no_restriction"));
    let listed = policy(&["*.example"], true);
    assert_eq!(rule(&listed, "api.example"), Ok("egress_allowlist"));
    assert_eq!(rule(&listed, "api.test"), Err("egress_allowlist"));
    assert_eq!(rule(&listed, "10.0.0.1"), Err("egress_allowlist"));
    assert_eq!(
        rule(&policy(&[], false), "any.example"),
        Err("network_disabled")
    );
}

#[test]
fn opaque_bytes_need_a_host_without_secrets_and_named_by_the_list() {
    let name = |text: &str| text.parse().unwrap();
    assert!(policy(&[], true).permits_opaque(&name("git.example")));
    assert!(!policy(&[], true).permits_opaque(&name("api.example")));
    assert!(policy(&["*.example"], true).permits_opaque(&name("git.example")));
    assert!(!policy(&["*"], true).permits_opaque(&name("git.example")));
    assert!(!policy(&["*.test"], true).permits_opaque(&name("git.example")));
}
/// Goal: whoever forgets to have a request judged sends no secret that goes by it; and a value
/// in the path can't move the path that another secret was judged by.
#[test]
fn narrowing_fails_closed() {
    let placement = Placement::new(&PlacementText {
        path_prefix: Some("/v1/"),
        ..PlacementText::default()
    });
    let token = SealedToken::generate();
    let secret = Binding {
        hosts: Vec::new(),
        placement: placement.unwrap(),
        ..secret(token, "real-value-0001", "api.example")
    };
    let policy = Policy::new(Vec::new(), vec![secret], true, true);
    let rules = || policy.rules_for(&"api.example".parse().unwrap(), true, false);
    let unjudged = rules();
    assert!(matches!(
        unjudged.look_up(&token, None),
        Lookup::Unbound(_, Why::Method)
    ));
    let request = |path: &str| {
        let request = http::Request::builder().uri(path).body(()).unwrap();
        rules().for_request(&request.into_parts().0).unwrap()
    };
    let judged = request("/v1/x");
    assert!(matches!(judged.look_up(&token, None), Lookup::Bound(_)));
    assert!(judged.check_target("/v1/a%3Ab").is_ok());
    assert!(judged.check_target("/v1/..%2Fadmin").is_err());
    // One that goes elsewhere carries nothing that could be moved.
    assert!(request("/v2/x").check_target("/v2/..%2Fadmin").is_ok());
}

/// Goal: what may have been handed out for any of several secrets of a host goes where all of them go,
/// while all of them have it sealed, and is as revoked as any. Method: two secrets that share a host;
/// one has another, too.
#[test]
fn a_grant_goes_where_all_its_secrets_go() {
    let sealing = |seal_tokens| {
        let text = PlacementText {
            seal_tokens,
            ..PlacementText::default()
        };
        Placement::new(&text).unwrap()
    };
    let (first, second) = (SealedToken::generate(), SealedToken::generate());
    let (revoked, grants) = (Arc::default(), Arc::default());
    let policy = |second_seals: bool| {
        let mut wide = secret(first, "real-value-0001", "api.example");
        wide.hosts.push("more.example".parse().unwrap());
        wide.placement = sealing(true);
        let mut narrow = secret(second, "real-value-0002", "api.example");
        narrow.placement = sealing(second_seals);
        Policy::new(Vec::new(), vec![wide, narrow], true, true)
    };
    let rules = |policy: Policy, host: &str, tls| {
        let policy = policy.joined(&revoked, &grants);
        policy.rules_for(&host.parse().unwrap(), tls, false)
    };
    let api = rules(policy(true), "api.example", true);
    let parents = api.handed_out_for().unwrap();
    assert_eq!(parents.len(), 2);
    let value = || "Q7xW2vK9-Zt4uP".to_owned().into();
    let both = grants.seal(value(), &parents).unwrap();
    let more = rules(policy(true), "more.example", true);
    let one = grants.seal(value(), &more.handed_out_for().unwrap());
    let one = one.unwrap();
    assert_ne!(one, both);
    let granted =
        |rules: &HostRules, token| matches!(rules.look_up(token, None), Lookup::Granted(_));
    assert!(granted(&api, &both) && granted(&api, &one) && granted(&more, &one));
    assert!(!granted(&more, &both));
    // Neither without TLS nor once an owner asks for it no more.
    assert!(!granted(&rules(policy(true), "api.example", false), &both));
    let narrowed = rules(policy(false), "api.example", true);
    assert!(!granted(&narrowed, &both) && granted(&narrowed, &one));
    rules(
        policy(true).with_revoked(vec![(second, "KEY".into())]),
        "api.example",
        true,
    );
    assert!(matches!(api.look_up(&both, None), Lookup::Revoked(_)));
    assert!(granted(&api, &one));
}
