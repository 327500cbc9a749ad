//! The least a proxy can do: CONNECT, then bytes both ways. Every name is loopback.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};

use crate::Result;

/// Bytes of a CONNECT head.
const HEAD_BYTES_MAX: usize = 4096;
/// Bytes read at once, each way.
const BUFFER_BYTES: usize = 64 * 1024;

pub async fn serve(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    println!("ready");
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::task::spawn_local(async move {
            if let Err(error) = carry(stream).await {
                eprintln!("tunnel: {error}");
            }
        });
    }
}

async fn carry(mut near: TcpStream) -> Result<()> {
    near.set_nodelay(true)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > HEAD_BYTES_MAX || near.read_buf(&mut head).await? == 0 {
            return Err("no CONNECT".into());
        }
    }
    let head = std::str::from_utf8(&head)?;
    let target = head.split(' ').nth(1).ok_or("no target")?;
    let port = target.rsplit(':').next().ok_or("no port")?.parse()?;
    let mut far = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    far.set_nodelay(true)?;
    near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    // How a case ends: the client goes away.
    let _ = copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER_BYTES, BUFFER_BYTES).await;
    Ok(())
}
