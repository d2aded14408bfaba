//! What an operator is shown of one action and of one archive, and what `ggen` waits for.

use serde_json::json;
use tempfile::TempDir;

use crate::bad_input::LIBRARY_WORDS;
use crate::escalations::dedicated;
use crate::life::{gone, object, objects};
use crate::webhooks::Delivery;
use crate::world::{PATIENCE, SKU, alongside, eventually, unique};

#[tokio::test]
async fn an_action_is_waited_for_and_shown() {
    let world = alongside().await;
    let tenant = world.tenant("shown").await;
    let account = tenant.account.as_str();
    let send = [
        "send-signal",
        "--account-id",
        account,
        "--template",
        "restart-service",
        "--wait",
    ];

    let parameters = ["--parameters", r#"{"service":"web"}"#];
    let done = world
        .ggen(&[&send[..], &parameters, &["--action-id", "done"]].concat())
        .await;
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (Some(0), "done  complete\n"),
        "{done:?}"
    );

    let parameters = ["--parameters", r#"{"service":"web","outcome":"fail"}"#];
    let failed = world
        .ggen(&[&send[..], &parameters, &["--count", "3", "--format", "json"]].concat())
        .await;
    assert_eq!(failed.code, Some(1), "{failed:?}");
    let answer = failed.json();
    let actions = answer["actions"].as_array().unwrap();
    assert_eq!(actions.len(), 3, "{answer}");
    assert!(
        actions.iter().all(|action| action["state"] == "rolled_back"),
        "{answer}"
    );

    let shown = world
        .ggen(&["action", "show", "done", "--account-id", account])
        .await
        .ok();
    for part in ["done", "restart-service", "complete", "action_complete"] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    let id = actions[0]["action_id"].as_str().unwrap();
    let show = ["action", "show", id, "--account-id", account, "--format", "json"];
    let view = eventually("both receipts of the action", PATIENCE, || async {
        let view = world.ggen(&show).await.json();
        let known = view["receipts"].as_array().unwrap().len();
        if known == 2 {
            Ok(view)
        } else {
            Err(view.to_string())
        }
    })
    .await;
    assert_eq!(
        (&view["state"], &view["is_final"]),
        (&json!("rolled_back"), &json!(true)),
        "{view}"
    );
    assert_eq!(view["why"]["code"], "SIMULATED_FAILURE", "{view}");
    let operations: Vec<_> = view["receipts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| &r["operation"])
        .collect();
    assert_eq!(operations, ["action_failed", "action_rolled_back"]);
    // As they stand in the ledger.
    let ledger = world.ledger(account).await;
    assert_eq!(view["receipts"], json!(ledger.of(id)));

    let unknown = world
        .ggen(&["action", "show", "nothing", "--account-id", account])
        .await;
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    assert!(unknown.stdout.starts_with("NOT FOUND: account "), "{unknown:?}");
}

#[tokio::test]
async fn who_waits_is_told_when_time_is_up() {
    let world = alongside().await;
    let steers = "one_of: [succeed, fail, fail-unrecoverable]";
    let more = "one_of: [succeed, fail, fail-unrecoverable, fail-rollback]";
    let tenant = dedicated(&world, "slow", &[(steers, more)]).await;
    // Refused rollbacks go on at growing intervals, for far longer than two seconds.
    let parameters = r#"{"service":"web","outcome":"fail-rollback"}"#;
    let send = [
        "send-signal",
        "--account-id",
        &tenant.account,
        "--template",
        "restart-service",
    ];
    let ran = world
        .ggen(
            &[
                &send[..],
                &["--parameters", parameters, "--wait=2", "--action-id", "slow"],
            ]
            .concat(),
        )
        .await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert_eq!(ran.stdout, "slow  not ended\n");
    assert!(
        ran.stderr
            .contains("1 of 1 actions have not ended after 2 s, action slow among them"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn an_archive_is_downloaded_as_it_is_stored() {
    let world = alongside().await;
    let tenant = world.tenant("download").await;
    let account = tenant.account.as_str();
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("out");
    let download = [
        "archive",
        "download",
        "--account-id",
        account,
        "--out",
        out.to_str().unwrap(),
    ];
    let early = world.ggen(&download).await;
    assert_eq!(early.code, Some(1), "{early:?}");
    assert!(
        early.stdout.contains("a tenant is archived when it leaves"),
        "{early:?}"
    );
    assert!(!out.exists());

    world.post(&Delivery::cancelled(world.env, account, SKU)).await;
    gone(&world, &tenant).await;
    let prefix = format!("{account}/");
    let keys = eventually("what closes the archive", PATIENCE, || async {
        let keys = objects(&world, &prefix).await;
        if keys.iter().any(|key| key.ends_with(".closing.checkpoint")) {
            Ok(keys)
        } else {
            Err(format!("{keys:?}"))
        }
    })
    .await;
    let ran = world.ggen(&[&download[..], &["--format", "json"]].concat()).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let answer = ran.json();
    for key in keys
        .iter()
        .filter(|key| key.ends_with(".tar.gz") || key.contains(".closing."))
    {
        let name = key.strip_prefix(&prefix).unwrap();
        assert_eq!(
            std::fs::read(out.join(name)).unwrap(),
            object(&world, key).await,
            "{name}"
        );
    }
    let path = |name: &str| answer[name].as_str().unwrap().to_owned();
    let (archive, closing, note) = (path("archive"), path("closing"), path("closing_checkpoint"));
    let verify = [
        "verify-archive",
        &archive,
        "--closing",
        &closing,
        "--closing-checkpoint",
        &note,
    ];
    let key = world.env.auditor_pub.to_str().unwrap();
    assert!(
        world
            .ggen(&[&verify[..], &["--public-key", key]].concat())
            .await
            .ok()
            .starts_with("VERIFIED")
    );

    // Nothing is overwritten, and nothing is left behind.
    let again = world.ggen(&download).await;
    assert_eq!(again.code, Some(2), "{again:?}");
    assert!(again.stderr.contains("is there already"), "{again:?}");
    let other = world
        .ggen(&[&download[..], &["--date", "2001-01-01"]].concat())
        .await;
    assert_eq!(other.code, Some(1), "{other:?}");
    assert!(
        other
            .stdout
            .contains("no archive of 2001-01-01; there is one of "),
        "{other:?}"
    );
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 3);
}

/// Commands about an account that nobody knows say so, each in words for people.
#[tokio::test]
async fn an_unknown_account_is_said_to_be_unknown() {
    let world = alongside().await;
    let account = unique("nobody");
    let key = world.env.auditor_pub.to_str().unwrap();
    for (command, code, says) in [
        (
            &["checkpoint", "--public-key", key][..],
            1,
            "0 receipts: there is nothing to sign",
        ),
        (&["audit", "--public-key", key], 2, "has no receipts"),
        (&["export-receipts"], 2, "has no receipts"),
        (&["tenants", "show"], 1, "NOT FOUND"),
        (&["action", "show", "a"], 1, "NOT FOUND"),
        (&["archive", "download"], 1, "no archive"),
        (&["scale", "--concurrency", "5"], 1, "NOT FOUND"),
        (&["send-signal", "--template", "t"], 1, "there is no tenant"),
        (&["redrive", "--who", "w"], 1, "there is no tenant"),
        (&["resolve", "a", "--note", "n", "--who", "w"], 1, "a"),
    ] {
        let ran = world.ggen(&[command, &["--account-id", &account]].concat()).await;
        let told = format!("{}{}", ran.stdout, ran.stderr);
        assert_eq!(ran.code, Some(code), "{command:?}: {told}");
        assert!(told.contains(says), "{command:?}: {told}");
        for word in LIBRARY_WORDS {
            assert!(!told.contains(word), "{command:?} says {word:?}: {told}");
        }
    }
}
