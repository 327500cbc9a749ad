//! Files: content, owners, refusals.

use super::*;

async fn content(guest: &Fixture, path: &str) -> Result<Vec<u8>, GuestError> {
    let (size, content) = guest.client.read_file(path).await?;
    let parts: Vec<Bytes> = content.try_collect().await?;
    let content = parts.concat();
    assert_eq!(size, content.len() as u64);
    Ok(content)
}

fn whole(data: &[u8]) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send + use<> {
    let pieces: Vec<_> = data
        .chunks(100_000)
        .map(|c| Ok(Bytes::copy_from_slice(c)))
        .collect();
    stream::iter(pieces)
}

/// Goal: what is written is read back, under any name, with the right owner and mode.
#[tokio::test]
async fn files_are_written_and_read() {
    let guest = Fixture::start().await;
    let large: Vec<u8> = (0..3_000_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
    for (name, data) in [
        ("empty", &b""[..]),
        ("odd name\nü 'x'", b"odd"),
        ("made/of/parents", b"deep"),
        ("large", &large),
    ] {
        let path = guest.path(name);
        let written = guest.client.write_file(&path, whole(data)).await.unwrap();
        assert_eq!(written, data.len() as u64);
        assert!(content(&guest, &path).await.unwrap() == data, "{name:?}");
        let found = std::fs::metadata(&path).unwrap();
        assert_eq!(found.permissions().mode() & 0o7777, 0o644);
        if rustix::process::geteuid().is_root() {
            assert_eq!(std::os::unix::fs::MetadataExt::uid(&found), 1000);
        }
    }
    // An existing file keeps its mode, a link stays a link.
    let script = guest.path("script");
    std::fs::write(&script, "old").unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("script", guest.path("link")).unwrap();
    guest
        .client
        .write_file(&guest.path("link"), whole(b"new"))
        .await
        .unwrap();
    assert_eq!(std::fs::read(&script).unwrap(), b"new");
    assert_eq!(
        std::fs::metadata(&script).unwrap().permissions().mode() & 0o777,
        0o755
    );
    assert!(
        std::fs::symlink_metadata(guest.path("link"))
            .unwrap()
            .is_symlink()
    );
    // Files whose size the kernel does not tell.
    assert!(!content(&guest, "/proc/version").await.unwrap().is_empty());
}

/// Goal: a broken upload leaves the old content and no other trace.
#[tokio::test]
async fn a_broken_upload_changes_nothing() {
    let guest = Fixture::start().await;
    let path = guest.path("kept/file");
    guest.client.write_file(&path, whole(b"old")).await.unwrap();
    let broken = stream::iter([Ok(Bytes::from_static(b"half")), Err("the client left")]);
    let error = guest.client.write_file(&path, broken).await.unwrap_err();
    assert_eq!(error, GuestError::Upload("the client left".into()));
    // Given up by the caller, with no end at all.
    let endless = whole(b"half").chain(stream::pending());
    let write = guest.client.write_file(&path, endless);
    assert!(
        tokio::time::timeout(Duration::from_millis(200), write)
            .await
            .is_err()
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(content(&guest, &path).await.unwrap(), b"old");
    assert_eq!(
        guest
            .client
            .list_dir(&guest.path("kept"))
            .await
            .unwrap()
            .len(),
        1
    );
}

/// Goal: what can't be read or written is refused by its own name, and nothing hangs.
#[tokio::test]
async fn unusable_paths_are_refused() {
    let guest = Fixture::start().await;
    let (dir, file, pipe) = (guest.path("dir"), guest.path("file"), guest.path("pipe"));
    guest.client.make_dir(&dir).await.unwrap();
    guest.client.make_dir(&dir).await.unwrap();
    guest.client.write_file(&file, whole(b"x")).await.unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let below = format!("{file}/below");
    for (path, read, write) in [
        (dir.as_str(), "Invalid", "Invalid"),
        (pipe.as_str(), "Invalid", "Invalid"),
        ("/dev/zero", "Invalid", "Invalid"),
        ("/no/such/file", "NotFound", ""),
        ("", "Invalid", "Invalid"),
        ("a\0b", "Invalid", "Invalid"),
        (below.as_str(), "NotFound", "Precondition"),
    ] {
        let error = format!("{:?}", content(&guest, path).await.unwrap_err());
        assert!(error.starts_with(read), "reading {path:?}: {error}");
        if !write.is_empty() {
            let written = guest.client.write_file(path, whole(b"x")).await;
            let error = format!("{:?}", written.unwrap_err());
            assert!(error.starts_with(write), "writing {path:?}: {error}");
        }
    }
    let made = guest.client.make_dir(&below).await;
    assert!(matches!(made, Err(GuestError::Precondition(_))));
    let listed = guest.client.list_dir(&file).await;
    assert!(matches!(listed, Err(GuestError::NotFound(_))));
    for root in ["/", "//", "/..", "/dev/.."] {
        assert!(
            matches!(guest.client.remove(root).await, Err(GuestError::Invalid(_))),
            "{root}"
        );
    }
}

/// Goal: lists are sorted and whole; removing follows no link and minds no missing path.
#[tokio::test]
async fn directories_are_listed_and_removed() {
    let guest = Fixture::start().await;
    for i in (0..1200).rev() {
        let name = guest.path(&format!("tree/{i:04}"));
        std::fs::create_dir_all(guest.path("tree")).unwrap();
        std::fs::write(name, "x".repeat(i % 7)).unwrap();
    }
    std::fs::create_dir(guest.path("tree/.hidden")).unwrap();
    let list = guest.client.list_dir(&guest.path("tree/")).await.unwrap();
    assert_eq!(list.len(), 1201);
    assert!(list.is_sorted_by(|a, b| a.name < b.name));
    assert_eq!((list[0].name.as_str(), list[0].is_dir), (".hidden", true));
    let six = DirEntry {
        name: "0006".into(),
        is_dir: false,
        size: 6,
        path: guest.path("tree/0006"),
    };
    assert_eq!(list[7], six);
    let kept = guest.path("kept");
    std::fs::create_dir(&kept).unwrap();
    std::fs::write(guest.path("kept/file"), "x").unwrap();
    std::os::unix::fs::symlink(&kept, guest.path("tree/link")).unwrap();
    for _ in 0..2 {
        guest.client.remove(&guest.path("tree")).await.unwrap();
        assert!(!PathBuf::from(guest.path("tree")).exists());
    }
    assert_eq!(guest.client.list_dir(&kept).await.unwrap().len(), 1);
}
