//! What a decision tells, and when it is handed over.

use super::*;

/// Goal: only what was handed to the host is told as sent to it.
#[test]
fn what_was_refused_before_it_left_was_not_sent() {
    let (trail, mut decisions) = tokio::sync::mpsc::channel(8);
    let mut decide = |leaves: bool| {
        let host = "a.example".parse().unwrap();
        let mut record = Record::new(trail.clone(), &host, 443, Protocol::Https, Arc::default());
        record.tally.names().substituted.insert("KEY".to_owned());
        if leaves {
            record.tally.leave();
        }
        record.refused(&Refusal::AuditUnrecorded);
        drop(record);
        decisions.try_recv().unwrap()
    };
    let kept = decide(false);
    assert!(kept.secrets.is_empty());
    assert_eq!(
        (&*kept.unbound[0], kept.unbound_why["KEY"]),
        ("KEY", "not_sent")
    );
    let sent = decide(true);
    assert_eq!((sent.secrets.len(), sent.unbound.len()), (1, 0));
}

/// Goal: a decision tells also what is done after its record was dropped, by whoever still has
/// the tally; closed, it waits for nobody.
#[test]
fn a_decision_waits_for_whoever_may_add_to_it() {
    let (trail, mut decisions) = tokio::sync::mpsc::channel(8);
    for closed in [false, true] {
        let host = "a.example".parse().unwrap();
        let record = Record::new(trail.clone(), &host, 443, Protocol::Https, Arc::default());
        let tally = record.tally.clone();
        tally.leave();
        drop(record);
        assert!(decisions.try_recv().is_err());
        tally.names().substituted.insert("KEY".to_owned());
        match closed {
            true => tally.close(),
            false => drop(tally),
        }
        assert_eq!(decisions.try_recv().unwrap().secrets, ["KEY"]);
    }
}

/// Goal: the same refusal again and again takes one entry; whatever tells more stays.
#[test]
fn only_the_same_refusal_is_absorbed() {
    let (trail, mut decisions) = tokio::sync::mpsc::channel(8);
    let mut decide = |refusal: &Refusal, port, up| {
        let host = "a.example".parse().unwrap();
        let mut record = Record::new(trail.clone(), &host, port, Protocol::Https, Arc::default());
        record.refused(refusal);
        record.up.store(up, Ordering::Relaxed);
        drop(record);
        decisions.try_recv().unwrap()
    };
    let mut entry = decide(&Refusal::NotAllowed, 443, 0);
    assert!(entry.absorb(&decide(&Refusal::NotAllowed, 443, 0)));
    assert!(entry.absorb(&decide(&Refusal::NotAllowed, 443, 0)));
    assert_eq!(serde_json::to_value(&entry).unwrap()["times"], 3);
    assert!(!entry.absorb(&decide(&Refusal::NotAllowed, 444, 0)));
    assert!(!entry.absorb(&decide(&Refusal::Upgrade, 443, 0)));
    assert!(!entry.absorb(&decide(&Refusal::NotAllowed, 443, 9)));
}

/// Goal: the decision about a request that was announced is told from all others, and stays an
/// entry of its own.
#[test]
fn a_decision_names_its_announcement() {
    let (trail, mut decisions) = tokio::sync::mpsc::channel(8);
    let mut decide = |announces: bool| {
        let host = "a.example".parse().unwrap();
        let record = Record::new(trail.clone(), &host, 443, Protocol::Https, Arc::default());
        let names = || record.sending(std::iter::empty()).map(|one| one.request);
        let told = announces.then(|| [names(), names()]);
        drop(record);
        let decision = decisions.try_recv().unwrap();
        for name in told.iter().flatten() {
            assert!(name.is_some() && *name == decision.announced);
        }
        decision
    };
    let (mut first, second, none) = (decide(true), decide(true), decide(false));
    assert_ne!(first.announced, second.announced);
    assert_eq!(none.announced, None);
    assert!(!first.absorb(&second) && !first.absorb(&none));
}
