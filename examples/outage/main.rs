//! The main job in one command: a surgery that keeps working through an outage, and the proof that nothing was lost.
//!
//!     cargo run --release --example outage
//!     cargo run --release --example outage -- --count 20000
//!     cargo run --release --example outage -- --messages FILE.mllp
//!     cargo run --release --example outage -- --broker broker.example:8883 --ca ca.pem \
//!         --gateway-certificate gw.pem --gateway-key gw.key --hub-certificate hub.pem --hub-key hub.key
//!
//! Without `--broker` it starts a small broker of its own (mutual TLS, certificates made for this run). The gateway
//! and the hub are the real programs, each in its own process. The link is a proxy that is cut in the middle. The last
//! line is JSON; the exit status is not 0 if anything is wrong.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example stops at the first thing that goes wrong, and prints"
)]

mod bar;
mod broker;
mod link;
mod plant;
#[path = "../../tests/harness/ports.rs"]
mod ports;
mod proof;
mod sender;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;

use bar::Bar;
use link::Link;
use plant::{Broker, Plant};
use proof::Proof;
use sender::Sender;

/// Shows a surgery working through an outage, and proves that nothing was lost.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many messages to make up.
    #[arg(long, default_value_t = 10_000)]
    count: usize,
    /// Send these MLLP frames instead.
    #[arg(long)]
    messages: Option<PathBuf>,
    /// How many senders work at once.
    #[arg(long, default_value_t = 8)]
    senders: usize,
    /// Use this broker (host:port) and not an embedded one.
    #[arg(long, requires_all = ["ca", "gateway_certificate", "gateway_key", "hub_certificate", "hub_key"])]
    broker: Option<String>,
    /// CA of that broker, PEM.
    #[arg(long)]
    ca: Option<PathBuf>,
    /// Client certificate for B86022.gw1, PEM.
    #[arg(long)]
    gateway_certificate: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long)]
    gateway_key: Option<PathBuf>,
    /// Client certificate for hub1, PEM.
    #[arg(long)]
    hub_certificate: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long)]
    hub_key: Option<PathBuf>,
    /// Keep all files in this directory (default: a temporary one, removed at the end).
    #[arg(long)]
    directory: Option<PathBuf>,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    // The gateway and the hub of this demonstration are this same file, started again under their own names.
    let mut words = std::env::args_os();
    let _own = words.next();
    match words.next().and_then(|w| w.into_string().ok()).as_deref() {
        Some("practice-gateway") => return pgw_gateway::cli::main(std::env::args_os().skip(1)),
        Some("practice-hub") => return pgw_hub::cli::main(std::env::args_os().skip(1)),
        _ => {}
    }
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let ended = runtime.block_on(show(arguments));
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("outage: {error}");
            println!(
                r#"{{"accepted":0,"delivered":0,"lost":0,"repeated":0,"out_of_order":0,"chain_ok":false}}"#
            );
            ExitCode::FAILURE
        }
    }
}

async fn show(arguments: Arguments) -> Result<bool> {
    let temporary;
    let directory = match &arguments.directory {
        Some(directory) => {
            std::fs::create_dir_all(directory)?;
            directory.clone()
        }
        None => {
            temporary = tempfile::tempdir()?;
            temporary.path().to_owned()
        }
    };
    let broker = match &arguments.broker {
        None => Broker::embedded(&directory)?,
        Some(address) => Broker::named(&arguments, address)?,
    };
    let link = Link::start(broker.address.clone()).await?;
    let mut plant = Plant::start(&directory, &broker, link.address)?;
    plant.wait_for("the link to come up", |status| status["link_up"] == 1).await?;
    println!("broker {}, gateway and hub are up; the MLLP door is {}", broker.address, plant.door);

    let messages = sender::messages(arguments.messages.as_deref(), arguments.count)?;
    let third = messages.len() / 3;
    let mut acknowledged = vec![Vec::new(); arguments.senders.max(1)];

    println!("\n1. The link is up: {third} messages");
    send(&plant, &messages[..third], &mut acknowledged).await?;
    plant.drain("delivered", third as u64).await?;

    println!("\n2. The link is cut; the surgery continues");
    link.cut();
    plant.wait_for("the gateway to notice", |status| status["link_up"] == 0).await?;
    send(&plant, &messages[third..2 * third], &mut acknowledged).await?;
    let status = plant.status()?;
    println!("   accepted and waiting: {} messages, {} bytes", status["waiting"], status["waiting_bytes"]);

    println!(
        "\n3. The link is back; {} more messages come in while the backlog drains",
        messages.len() - 2 * third
    );
    let back = Instant::now();
    link.restore();
    let more = send(&plant, &messages[2 * third..], &mut acknowledged);
    let (sent, drained) = tokio::join!(more, plant.drain("delivered", messages.len() as u64));
    sent?;
    drained?;
    println!(
        "   all confirmed {:.1} s after the link came back (its first tries are delayed on purpose)",
        back.elapsed().as_secs_f64()
    );

    plant.stop()?;
    let proof = Proof::of(&plant.store, &acknowledged)?;
    println!("\nThe proof, from the hub's own files:");
    println!("   accepted (acknowledged to a sender)  {:>8}", proof.accepted);
    println!("   delivered (in the hub's store)       {:>8}", proof.delivered);
    println!("   lost                                 {:>8}", proof.lost);
    println!("   repeated                             {:>8}", proof.repeated);
    println!("   out of order                         {:>8}", proof.out_of_order);
    println!(
        "   chain                                {:>8}",
        if proof.chain_ok { "verified" } else { "BROKEN" }
    );
    println!("{}", proof.json());
    let nothing_wrong = proof.lost + proof.repeated + proof.out_of_order == 0 && proof.chain_ok;
    Ok(nothing_wrong && proof.accepted > 0)
}

/// Distributes the messages to the senders in turn; each waits for its acknowledgment before it sends the next.
async fn send(plant: &Plant, messages: &[Vec<u8>], acknowledged: &mut [Vec<Vec<u8>>]) -> Result<()> {
    let bar = Arc::new(Bar::new(messages.len() as u64, "accepted "));
    let senders = acknowledged.len();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..senders {
        let mine: Vec<Vec<u8>> = messages.iter().skip(number).step_by(senders).cloned().collect();
        let (door, bar) = (plant.door, Arc::clone(&bar));
        tasks.spawn(async move {
            let mut sender = Sender::connect(door).await?;
            let mut safe = Vec::new();
            for message in mine {
                if sender.send(&message).await? {
                    safe.push(message);
                }
                bar.step();
            }
            std::io::Result::Ok((number, safe))
        });
    }
    while let Some(done) = tasks.join_next().await {
        let (number, safe) = done??;
        acknowledged[number].extend(safe);
    }
    bar.finish();
    Ok(())
}

/// Waits for a condition; panics if it is not met in time.
async fn until(what: &str, limit: Duration, mut met: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !met()? {
        if start.elapsed() > limit {
            return Err(format!("waited {limit:?} for {what}").into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
