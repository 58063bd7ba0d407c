//! Both sides of a control socket, with a daemon that counts and adds.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;
use crate::exit::Exit;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
enum Request {
    /// This many lines.
    Count {
        through: u64,
    },
    /// The sum of the bytes that follow.
    Add {
        bytes: usize,
    },
    /// This many bytes.
    Bytes {
        bytes: u64,
    },
    Forbidden {},
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
enum TestReply {
    Number { number: u64 },
    Sum { sum: u64, user: u32 },
    Bytes {},
    End {},
    Failed(NotDone),
    NotPermitted { reason: String },
}

impl Reply for TestReply {
    fn failed(failed: NotDone) -> Self {
        Self::Failed(failed)
    }

    fn is_last(&self) -> bool {
        !matches!(self, Self::Number { .. })
    }

    fn checked(self) -> Result<Self, ClientError> {
        match self {
            Self::Failed(failed) => Err(ClientError::Failed(failed)),
            Self::NotPermitted { reason } => Err(ClientError::NotPermitted(reason)),
            other => Ok(other),
        }
    }
}

/// More clients than were taken at once before.
const LONG_ANSWERS_FOR_TESTS: usize = 32;

struct Counter;

impl Handler for Counter {
    type Request = Request;
    type Reply = TestReply;

    async fn answer(&self, request: Request, client: &mut Conversation) -> io::Result<()> {
        match request {
            Request::Count { through } => {
                client
                    .stream_of(move |send| {
                        for number in 1..=through {
                            if number > 1_000 {
                                return Err(NotDone::refused("it cannot count so far"));
                            }
                            if send(TestReply::Number { number }).is_break() {
                                break;
                            }
                        }
                        Ok(TestReply::End {})
                    })
                    .await
            }
            Request::Add { bytes } => {
                let mut numbers = vec![0; bytes];
                client.read_exact(&mut numbers).await?;
                let sum = numbers.iter().map(|number| u64::from(*number)).sum();
                client.send_line(&TestReply::Sum { sum, user: client.user()? }).await
            }
            Request::Bytes { bytes } => {
                client.send_line(&TestReply::Bytes {}).await?;
                client.send(&vec![7; usize::try_from(bytes).unwrap_or(0)]).await
            }
            Request::Forbidden {} => {
                client.send_line(&TestReply::NotPermitted { reason: "not for you".to_owned() }).await
            }
        }
    }
}

struct Daemon {
    socket: PathBuf,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    runtime: tokio::runtime::Runtime,
    _directory: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control.sock");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (stop, stopped) = watch::channel(false);
        let guard = runtime.enter();
        let control = Control::listen(&socket).unwrap();
        drop(guard);
        let task = runtime.spawn(control.serve(Arc::new(Counter), stopped));
        Self { socket, stop, task, runtime, _directory: directory }
    }

    fn client(&self) -> Client<Request, TestReply> {
        Client::connect(&self.socket).unwrap()
    }

    fn stop(self) {
        self.stop.send(true).unwrap();
        let ended = async { tokio::time::timeout(Duration::from_secs(20), self.task).await };
        self.runtime.block_on(ended).unwrap().unwrap();
        assert!(!self.socket.exists());
    }
}

#[test]
fn an_answer_has_many_lines_and_bytes_go_both_ways() {
    let daemon = Daemon::start();
    let mut client = daemon.client();
    let mut answers = Vec::new();
    client.ask(&Request::Count { through: 500 }, |answer| answers.push(answer)).unwrap();
    assert_eq!((answers.len(), answers.pop()), (501, Some(TestReply::End {})));
    client.send(&Request::Add { bytes: 3 }).unwrap();
    client.send_bytes(&[1, 2, 250]).unwrap();
    let user = rustix::process::getuid().as_raw();
    assert_eq!(client.reply().unwrap(), TestReply::Sum { sum: 253, user });
    client.ask(&Request::Bytes { bytes: 100_000 }, |_| {}).unwrap();
    let mut bytes = Vec::new();
    client.bytes(100_000, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 100_000]);
    daemon.stop();
}

#[test]
fn what_the_daemon_cannot_do_or_may_not_do_is_an_error_with_its_exit_code() {
    let daemon = Daemon::start();
    let mut client = daemon.client();
    let failed = client.ask(&Request::Count { through: 2_000 }, |_| {}).unwrap_err();
    let exit = |error: &ClientError| Exit::from(error.consequence());
    assert_eq!((failed.to_string().as_str(), exit(&failed)), ("it cannot count so far", Exit::Refused));
    for (consequence, code) in [(Consequence::Retry, Exit::Later), (Consequence::BUG, Exit::Internal)] {
        let not_done = NotDone { reason: String::new(), consequence };
        assert_eq!(exit(&ClientError::Failed(not_done)), code, "the daemon's consequence is the command's");
    }
    let refused = client.ask(&Request::Forbidden {}, |_| {}).unwrap_err();
    assert_eq!(exit(&refused), Exit::NotPermitted);
    let socket = daemon.socket.clone();
    daemon.stop();
    assert!(matches!(client.reply(), Err(ClientError::Broken(_))));
    let nobody = Client::<Request, TestReply>::connect(&socket).unwrap_err();
    assert!(nobody.is_not_running());
    assert_eq!(exit(&nobody), Exit::Unreachable);
}

#[test]
fn the_socket_is_private_replaced_when_stale_and_never_taken_from_another() {
    let daemon = Daemon::start();
    let mode = std::fs::metadata(&daemon.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let guard = daemon.runtime.enter();
    assert!(matches!(Control::listen(&daemon.socket), Err(ListenError::InUse(_))));
    let stale = daemon.socket.with_file_name("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let again = Control::listen(&stale).unwrap();
    assert!(stale.exists());
    drop(again);
    assert!(!stale.exists(), "and it is gone with its owner");
    drop(guard);
    daemon.stop();
}

#[test]
fn only_a_socket_is_replaced_and_only_the_own_one_removed() {
    let daemon = Daemon::start();
    let directory = daemon.socket.parent().unwrap();
    let guard = daemon.runtime.enter();
    // A key, for example: it would be lost.
    let key = directory.join("outbox.key");
    std::fs::write(&key, "secret").unwrap();
    let refused = Control::listen(&key).unwrap_err();
    assert!(matches!(refused, ListenError::NotASocket(_)));
    assert_eq!(Exit::from(refused.consequence()), Exit::Configuration);
    assert_eq!(std::fs::read_to_string(&key).unwrap(), "secret");
    assert!(matches!(Control::listen(directory), Err(ListenError::NotASocket(_))));
    assert!(matches!(Control::listen(&directory.join("no/s")), Err(ListenError::NoDirectory(_))));
    let long = directory.join("s".repeat(108));
    assert!(matches!(Control::listen(&long), Err(ListenError::TooLong(_))));
    let replaced = directory.join("replaced.sock");
    let first = Control::listen(&replaced).unwrap();
    std::fs::remove_file(&replaced).unwrap();
    let second = Control::listen(&replaced).unwrap();
    drop(first);
    assert!(replaced.exists(), "it is another daemon's now");
    std::fs::remove_file(&replaced).unwrap();
    std::fs::write(&replaced, "somebody's file").unwrap();
    drop(second);
    assert!(replaced.exists());
    let names = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| !name.as_encoded_bytes().starts_with(b".")), "nothing half-made");
    drop(guard);
    daemon.stop();
}

#[test]
fn clients_that_do_not_read_leave_room_for_others() {
    let daemon = Daemon::start();
    let mut stuck: Vec<_> = (0..LONG_ANSWERS_FOR_TESTS).map(|_| daemon.client()).collect();
    // Each answer is larger than what a socket holds.
    for client in &mut stuck {
        client.send(&Request::Bytes { bytes: 8 << 20 }).unwrap();
    }
    let mut client = daemon.client();
    client.send(&Request::Add { bytes: 1 }).unwrap();
    client.send_bytes(&[7]).unwrap();
    assert!(matches!(client.reply().unwrap(), TestReply::Sum { sum: 7, .. }));
    // Nobody had to be cut off for it: the first one can still have all of its answer.
    assert_eq!(stuck[0].reply().unwrap(), TestReply::Bytes {});
    stuck[0].bytes(8 << 20, &mut io::sink()).unwrap();
    drop(stuck);
    daemon.stop();
}

#[test]
fn nonsense_is_answered_and_ended() {
    use std::io::{Read as _, Write as _};
    let daemon = Daemon::start();
    let long = vec![b'x'; LINE_BYTES + 10];
    for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"{\"command\":\"forbidden\"}", b"\xff\n", &long] {
        let mut stream = std::os::unix::net::UnixStream::connect(&daemon.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(nonsense).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        // Closing with unread bytes may reach the client as a reset after the answer.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.starts_with(b"{\"reply\":\"failed\""), "{}", String::from_utf8_lossy(&answer));
    }
    daemon.stop();
}
