//! Tests of the configuration: precedence, where a key may travel, and what files look like.

use super::*;

const KEY: &str = "osb_0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn resolved(sources: Sources) -> (String, Option<String>) {
    let settings = Settings::resolve(sources).expect("the sources of this test are valid");
    (
        settings.api_url,
        settings.api_key.map(|key| key.expose().to_owned()),
    )
}

fn at_home(home: &Path) -> Sources {
    Sources {
        home: Some(home.to_owned()),
        ..Sources::default()
    }
}

/// Goal: each source wins over all later ones. Method: add sources from the weakest up.
#[test]
fn flag_then_environment_then_config_then_local_then_default() {
    let home = tempfile::tempdir().unwrap();
    assert_eq!(
        resolved(at_home(home.path())),
        (DEFAULT_API_URL.to_owned(), None)
    );
    write_local(home.path(), "http://local:1/", "local-key").unwrap();
    assert_eq!(
        resolved(at_home(home.path())),
        ("http://local:1".into(), Some("local-key".into()))
    );
    set_field(home.path(), "api_url", "http://config:2").unwrap();
    set_field(home.path(), "api_key", "config-key").unwrap();
    let configured = ("http://config:2".into(), Some("config-key".into()));
    assert_eq!(resolved(at_home(home.path())), configured);
    let with_environment = || Sources {
        env_url: Some("http://env:3".into()),
        env_key: Some(ApiKey::from("env-key".to_owned())),
        ..at_home(home.path())
    };
    assert_eq!(
        resolved(with_environment()),
        ("http://env:3".into(), Some("env-key".into()))
    );
    let with_flags = Sources {
        flag_url: Some("http://flag:4/".into()),
        flag_key: Some(ApiKey::from("flag-key".to_owned())),
        ..with_environment()
    };
    assert_eq!(
        resolved(with_flags),
        ("http://flag:4".into(), Some("flag-key".into()))
    );
}

/// Goal: the key of the local server is never sent anywhere else.
#[test]
fn the_local_key_stays_with_the_local_url() {
    let home = tempfile::tempdir().unwrap();
    write_local(home.path(), "http://127.0.0.1:9", "local-key").unwrap();
    let elsewhere = |url: &str| {
        resolved(Sources {
            flag_url: Some(url.to_owned()),
            ..at_home(home.path())
        })
        .1
    };
    assert_eq!(elsewhere("https://example.test"), None);
    assert_eq!(elsewhere("http://127.0.0.1:9/"), Some("local-key".into()));
}

#[test]
fn files_are_private_and_replaced_without_leftovers() {
    let home = tempfile::tempdir().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let folder = home.path().join(".oc");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
    for round in 0..3 {
        write_local(home.path(), "http://127.0.0.1:9", &format!("key-{round}")).unwrap();
        set_field(home.path(), "api_key", KEY).unwrap();
    }
    assert_eq!(mode(&folder), 0o700);
    assert_eq!(mode(&folder.join("local.json")), 0o600);
    assert_eq!(mode(&folder.join("config.json")), 0o600);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
}

#[test]
fn setting_one_field_keeps_the_others() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join(".oc")).unwrap();
    let file = home.path().join(".oc/config.json");
    fs::write(&file, r#"{"login":{"name":"x"},"api_key":"old"}"#).unwrap();
    set_field(home.path(), "api_url", "http://a").unwrap();
    let object = read_object(&file).unwrap();
    assert_eq!(object["login"]["name"], "x");
    assert_eq!(object["api_key"], "old");
    assert_eq!(object["api_url"], "http://a");
}

/// Goal: a broken file is named, and its content, which may be a key, is not shown.
#[test]
fn a_broken_file_is_named_and_not_quoted() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join(".oc")).unwrap();
    for content in [
        format!("[\"{KEY}\"]"),
        format!("\"{KEY}\""),
        format!("{{{KEY}"),
    ] {
        fs::write(home.path().join(".oc/config.json"), content).unwrap();
        let Err(error) = Settings::resolve(at_home(home.path())) else {
            panic!("a broken file was accepted");
        };
        let error = error.to_string();
        assert!(
            error.contains("config.json") && error.contains("remove it"),
            "{error}"
        );
        assert!(!error.contains("osb_"), "{error}");
    }
}

#[test]
fn a_masked_key_shows_its_ends_only() {
    assert_eq!(ApiKey::from(KEY.to_owned()).masked(), "osb_...cdef");
    assert_eq!(ApiKey::from("short".to_owned()).masked(), "****");
    assert_eq!(ApiKey::from(String::new()).masked(), "****");
}
