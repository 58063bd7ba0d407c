//! The surgery's senders: HL7 messages over MLLP, waiting for each acknowledgment.

use std::net::SocketAddr;
use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Splits a file of MLLP frames, or makes up `count` results if there is no file.
pub(crate) fn messages(file: Option<&Path>, count: usize) -> std::io::Result<Vec<Vec<u8>>> {
    let Some(file) = file else {
        return Ok((1..=count).map(made_up).collect());
    };
    let bytes = std::fs::read(file)?;
    let frames: Vec<Vec<u8>> = bytes
        .split(|b| *b == 0x0b)
        .filter(|frame| frame.len() > 2)
        .map(|frame| {
            let end = frame.iter().rposition(|b| *b == 0x1c).unwrap_or(frame.len());
            frame[..end].to_vec()
        })
        .collect();
    Ok(frames)
}

/// A laboratory result about nobody.
fn made_up(number: usize) -> Vec<u8> {
    let creatinine = 60 + number * 7 % 60;
    format!(
        "MSH|^~\\&|LAB|EXAMPLE|PGW|B86022|20261122{:06}||ORU^R01|{number}|T|2.3|||AL\r\
         PID|1|EX{number:07}^^^EXAMPLE MRN^MRN|||Example^Patient {number}\r\
         OBR|1|{number}|{number}|us-0003^UREA AND ELECTROLYTES^WinPath\r\
         OBX|1|NM|tt-0003-01^Creatinine^WinPath||{creatinine}|UMOLL|49 - 92||||F\r\
         NTE|1||{}\r",
        number % 240_000,
        "A result that has to arrive, whatever happens to the link. ".repeat(1 + number % 12)
    )
    .into_bytes()
}

/// One sender with one connection.
pub(crate) struct Sender {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Sender {
    /// Connects to the gateway's MLLP door.
    pub(crate) async fn connect(door: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(door).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(2048) })
    }

    /// Sends one message and waits for its acknowledgment: `true` when it is positive.
    pub(crate) async fn send(&mut self, message: &[u8]) -> std::io::Result<bool> {
        let mut frame = Vec::with_capacity(message.len() + 3);
        frame.push(0x0b);
        frame.extend_from_slice(message);
        frame.extend_from_slice(&[0x1c, 0x0d]);
        self.stream.write_all(&frame).await?;
        self.buffer.clear();
        while !self.buffer.ends_with(&[0x1c, 0x0d]) {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok([&b"MSA|AA|"[..], b"MSA|CA|"].iter().any(|code| self.buffer.windows(7).any(|w| w == *code)))
    }
}
