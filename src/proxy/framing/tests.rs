use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What becomes of `bytes` that come in pieces of `size`: what the parser gets, whether it ends in
/// an error, and where each of three requests sits.
async fn through(bytes: &[u8], size: usize) -> (Vec<u8>, bool, [Seat; 3]) {
    let (near, mut far) = tokio::io::duplex(size);
    let (mut watched, watch) = Watched::new(near);
    let write = async {
        let _ = far.write_all(bytes).await;
        drop(far);
    };
    let mut out = Vec::new();
    let read = async {
        let read = watched.read_to_end(&mut out).await;
        drop(watched);
        read
    };
    let (read, ()) = tokio::join!(read, write);
    (
        out,
        read.is_err(),
        [watch.next(), watch.next(), watch.next()],
    )
}

/// Goal: what is well-formed passes unchanged however it is cut, and every request after another
/// is still watched: a fault at the very end is found.
#[tokio::test]
async fn well_formed_requests_pass_however_they_are_cut() {
    let well = "\r\nPOST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n\n\r\0\n\
                POST /2 HTTP/1.1\r\ntransfer-encoding:  Chunked \r\nx:\r\n\r\n\
                3;ext=1\r\n\n\n\n\r\n0A \r\n0123456789\r\n000\r\nx-trailer: 1\r\n\r\n\
                GET /3 HTTP/1.1\r\ncontent-length: 0\r\n\r\n";
    let long = format!("GET / HTTP/1.1\r\nx-long: {}\r\n\r\n", "y".repeat(700));
    for size in 1..90 {
        let whole = format!("{well}{long}");
        let (out, broken, seats) = through(whole.as_bytes(), size).await;
        assert_eq!((out, broken), (whole.clone().into_bytes(), false), "{size}");
        assert_eq!(seats, [Seat::Any; 3]);
        let faulty = format!("{whole}GET / HTTP/1.1\r\na: b\n\r\n");
        let (out, broken, _) = through(faulty.as_bytes(), size).await;
        assert!(broken && out.ends_with(b"\r\na: b\0"), "{size}");
    }
}

/// Goal: a line with two readings never reaches the parser whole; in a head its place is taken by
/// what no parser accepts, in a body the stream breaks off.
#[tokio::test]
async fn lines_with_two_readings_end_the_stream() {
    let post = "POST / HTTP/1.1\r\n";
    let chunked = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
    for (begin, bad) in [
        ("", "\nGET / HTTP/1.1\r\n\r\n"),
        ("", "GET / HTTP/1.1\nhost: a\r\n\r\n"),
        (post, "a: b\ntransfer-encoding: chunked\r\n\r\n"),
        (post, "a: b\rc: d\r\n\r\n"),
        (post, "a: b\r\r\n\r\n"),
        (post, "a\0: b\r\n\r\n"),
        (post, "a: b\r\n\n"),
        (post, "a: b\n\n"),
    ] {
        for size in 1..60 {
            let (out, broken, _) = through(format!("{begin}{bad}").as_bytes(), size).await;
            assert!(broken && out.ends_with(b"\0"), "{bad:?} by {size}");
        }
    }
    for bad in [
        "3\nabc\r\n0\r\n\r\n",
        "3;a\nb\r\nabc\r\n0\r\n\r\n",
        "3;a\rb\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcX\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        " 3\r\nabc\r\n0\r\n\r\n",
        "\r\nabc\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        "0\r\nx: y\nz: 1\r\n\r\n",
        "0\n\n",
        "0\r\n\n",
    ] {
        for size in 1..60 {
            let whole = format!("{chunked}{bad}");
            let (out, broken, _) = through(whole.as_bytes(), size).await;
            assert!(broken && out.len() < whole.len(), "{bad:?} by {size}");
            assert!(whole.as_bytes().starts_with(&out), "{bad:?} by {size}");
        }
    }
}

/// Goal: a request whose end is in doubt is refused and the last; one that may leave HTTP is the
/// last, and what follows it is left alone.
#[tokio::test]
async fn what_is_unclear_is_the_last() {
    let first = "GET / HTTP/1.1\r\n\r\n";
    let after = "a\nb\0";
    for fields in [
        "content-length: 1\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 1",
        "content-length: 1\r\nContent-Length: 1",
        "content-length: +1",
        "content-length: 1, 1",
        "content-length:",
        "content-length: 99999999999999999999",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: xchunked",
    ] {
        for size in [1, 7, 1000] {
            let whole = format!("{first}POST / HTTP/1.1\r\n{fields}\r\n\r\n{after}");
            let (out, broken, seats) = through(whole.as_bytes(), size).await;
            assert_eq!((out, broken), (whole.into_bytes(), false), "{fields}");
            assert_eq!(seats, [Seat::Any, Seat::Unclear, Seat::Unclear], "{fields}");
            assert!(seats[1].check().is_err());
        }
    }
    let padded = format!("content-length: {}5", " ".repeat(LINE_BYTES_KEPT));
    let whole = format!("POST / HTTP/1.1\r\n{padded}\r\n\r\n{after}");
    assert_eq!(through(whole.as_bytes(), 9).await.2[0], Seat::Unclear);
    let whole = format!("{first}CONNECT a:1 HTTP/1.1\r\n\r\n{after}");
    let (out, broken, seats) = through(whole.as_bytes(), 3).await;
    assert_eq!((out, broken), (whole.into_bytes(), false));
    assert_eq!(seats, [Seat::Any, Seat::Last, Seat::Last]);
    assert!(seats[1].check().is_ok());
    let (watch, mut response) = (Watch::default(), Response::new(()));
    watch.settle(Seat::Last, &mut response, true);
    assert!(response.headers().is_empty());
    watch.settle(Seat::Last, &mut response, false);
    assert_eq!(response.headers()["connection"], "close");
}

/// Goal: after a switch of protocols, and no earlier, every byte passes.
#[tokio::test]
async fn another_protocol_is_not_watched() {
    let head = b"GET / HTTP/1.1\r\nupgrade: websocket\r\n\r\n";
    for switches in [true, false] {
        let (near, mut far) = tokio::io::duplex(100);
        let (mut watched, watch) = Watched::new(near);
        far.write_all(head).await.unwrap();
        watched.read_exact(&mut [0; 38]).await.unwrap();
        let mut response = Response::new(());
        if switches {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        }
        watch.settle(watch.next(), &mut response, false);
        far.write_all(b"a\n\0").await.unwrap();
        drop(far);
        let mut out = Vec::new();
        assert_eq!(watched.read_to_end(&mut out).await.is_ok(), switches);
        assert_eq!(
            out,
            if switches {
                b"a\n\0".to_vec()
            } else {
                b"a\0".to_vec()
            }
        );
    }
}
