//! Random trees of sandboxes that branch off each other, against a model that copies.

use proptest::prelude::*;

use super::*;

/// One step of a random history of sandboxes that branch off each other.
#[derive(Debug, Clone)]
enum Step {
    /// Timeouts are set, so many times.
    Set {
        sandbox: usize,
        times: u32,
    },
    Fork {
        parent: usize,
        at: usize,
    },
    Load {
        sandbox: usize,
    },
}

fn any_step() -> impl Strategy<Value = Step> {
    let any = any::<usize>;
    prop_oneof![
        2 => (any(), 1..300_u32).prop_map(|(sandbox, times)| Step::Set { sandbox, times }),
        2 => (any(), any()).prop_map(|(parent, at)| Step::Fork { parent, at }),
        3 => any().prop_map(|sandbox| Step::Load { sandbox }),
    ]
}

/// What a sandbox's timeout was after each of its own events.
type Timeouts = Vec<u32>;

/// Plays `steps` and checks each load, and one of every sandbox at the end.
async fn play(source: &Source, steps: &[Step]) -> Result<(), TestCaseError> {
    let name = |number: usize| stream(&format!("sandbox-{number}"));
    let life = scenes::running();
    append(
        &source.log,
        life.iter().map(|event| recorded(&name(0), event)).collect(),
    )
    .await;
    let mut models: Vec<Timeouts> = vec![vec![300; life.len()]];
    let mut next = 1_000;
    for step in steps {
        match *step {
            Step::Set { sandbox, times } => {
                let sandbox = sandbox % models.len();
                let set: Vec<_> = (next..next + times).collect();
                next += times;
                let events = set.iter().map(|to| recorded(&name(sandbox), &timeout(*to)));
                append(&source.log, events.collect()).await;
                models[sandbox].extend(set);
            }
            Step::Fork { parent, at } => {
                let (child, parent) = (models.len(), parent % models.len());
                let at = at % models[parent].len();
                fork(&source.log, &name(child), &name(parent), at as u64, &[]).await;
                models.push(vec![models[parent][at]]);
            }
            Step::Load { sandbox } => {
                let sandbox = sandbox % models.len();
                check_load(source, &name(sandbox), sandbox == 0, &models[sandbox]).await?;
            }
        }
    }
    for (sandbox, model) in models.iter().enumerate() {
        check_load(source, &name(sandbox), sandbox == 0, model).await?;
        check_load(&without(source), &name(sandbox), sandbox == 0, model).await?;
    }
    Ok(())
}

async fn check_load(
    source: &Source,
    name: &StreamId,
    is_root: bool,
    model: &Timeouts,
) -> Result<(), TestCaseError> {
    let loaded = load::<Sandbox>(source, name).await;
    let details = loaded.state.details.as_ref().expect("its settings");
    prop_assert_eq!(Some(&details.timeout_sec), model.last());
    prop_assert_eq!(loaded.revision, Some(model.len() as u64 - 1));
    prop_assert_eq!(loaded.state.sealed.is_some(), is_root);
    prop_assert_eq!(loaded.state.phase == Phase::Running, is_root);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Goal: however sandboxes branch off each other, and whichever states were kept on the way,
    /// each one loads as a copy of its parent at that point with its own changes behind it.
    #[test]
    fn any_tree_of_sandboxes_loads_as_copies_would(
        steps in proptest::collection::vec(any_step(), 1..30)
    ) {
        let dir = tempfile::tempdir().expect("a folder");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let source = source(dir.path());
            let outcome = play(&source, &steps).await;
            source.log.close().await;
            outcome
        })?;
    }
}
