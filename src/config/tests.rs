//! How the sources of settings come together, and what is refused.

use super::*;

#[test]
fn flags_win_over_the_file_and_lists_add_up() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("oc.toml"),
        "listen = \"127.0.0.1:1\"\npublic_url = \"https://oc.example/\"\n[egress]\n\
             allow_private = [\"10.0.0.0/8\"]\n[egress.hosts]\n\"API.test\" = \"10.0.0.1\"\n",
    )
    .unwrap();
    let args = ServeArgs {
        data_dir: Some(dir.path().to_owned()),
        listen: Some("127.0.0.1:2".parse().unwrap()),
        egress_allow_private: vec!["127.0.0.0/8".parse().unwrap()],
        ..ServeArgs::default()
    };
    let config = Config::load(args).unwrap();
    assert_eq!(config.listen.port(), 2);
    assert_eq!(config.public_url.as_deref(), Some("https://oc.example"));
    assert_eq!(config.egress.allow_private.len(), 2);
    assert!(config.egress.hosts.contains_key("api.test"));
}

#[test]
fn one_master_key_is_enough() {
    let dir = Path::new("/d");
    let check = |file: Option<&str>, command: Option<&str>, variable: bool| {
        let command = command.map(|word| vec![word.to_owned()]);
        master_source(dir, file.map(PathBuf::from), command, variable)
            .map_err(|error| error.to_string())
    };
    let file = |path: &str| Ok(MasterSource::File(path.into()));
    assert_eq!(check(None, None, false), file("/d/master.key"));
    assert_eq!(check(Some("/k"), None, false), file("/k"));
    let command = MasterSource::Command(vec!["pass".into()]);
    assert_eq!(check(None, Some("pass"), false), Ok(command));
    assert_eq!(check(None, None, true), Ok(MasterSource::Environment));
    for (file, command, variable) in [
        (Some("/k"), Some("pass"), false),
        (Some("/k"), None, true),
        (None, Some("pass"), true),
        (Some("/k"), Some("pass"), true),
    ] {
        let refused = check(file, command, variable).unwrap_err();
        assert!(refused.contains("keep one of them"), "{refused}");
    }
}

#[test]
fn checkpoints_have_defaults_and_sane_intervals() {
    let read = |text: &str| toml::from_str::<File>(text).unwrap().checkpoints.unwrap();
    let given = checkpoints(read("[checkpoints]\ndir = \"/mnt\"\n")).unwrap();
    assert_eq!((given.every.as_secs(), given.every_commits), (300, 10_000));
    let zero = "[checkpoints]\ndir = \"/mnt\"\nevery_sec = 0\n";
    assert!(checkpoints(read(zero)).is_err());
    for relative in ["notes", "./notes", "../notes", ""] {
        let text = format!("[checkpoints]\ndir = {relative:?}\n");
        let refused = checkpoints(read(&text)).unwrap_err().to_string();
        assert!(refused.contains("give an absolute path"), "{refused}");
    }
    assert!(
        toml::from_str::<File>("[checkpoints]\n").is_err(),
        "no folder"
    );
}

#[test]
fn unsafe_or_misspelt_settings_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = ServeArgs {
        data_dir: Some(dir.path().to_owned()),
        listen: Some("0.0.0.0:0".parse().unwrap()),
        no_auth: true,
        ..ServeArgs::default()
    };
    assert!(matches!(
        Config::load(open),
        Err(ConfigError::OpenWithoutAuth(_))
    ));
    std::fs::write(dir.path().join("oc.toml"), "lisen = \"127.0.0.1:1\"\n").unwrap();
    let args = ServeArgs {
        data_dir: Some(dir.path().to_owned()),
        ..ServeArgs::default()
    };
    let error = Config::load(args).unwrap_err().to_string();
    assert!(error.contains("lisen"), "{error}");
}

/// Goal: where disks lie is one of the known words, from the file or (which wins) the flag.
#[test]
fn the_disk_store_is_a_known_word() {
    let dir = tempfile::tempdir().unwrap();
    let load = |word: &str, flag: Option<DiskStore>| {
        let text = format!("[disks]\nstore = \"{word}\"\n");
        std::fs::write(dir.path().join("oc.toml"), text).unwrap();
        let args = ServeArgs {
            data_dir: Some(dir.path().to_owned()),
            disk_store: flag,
            ..ServeArgs::default()
        };
        Config::load(args).map(|config| config.disk_store).ok()
    };
    assert_eq!(load("files", None), Some(DiskStore::Files));
    assert_eq!(load("pool", None), Some(DiskStore::Pool));
    assert_eq!(load("pool-btrfs", None), Some(DiskStore::PoolBtrfs));
    let flag = Some(DiskStore::PoolXfs);
    assert_eq!(load("files", flag), flag);
    assert_eq!(load("tape", None), None);
}
