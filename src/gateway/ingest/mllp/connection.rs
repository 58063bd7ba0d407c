//! One sender's connection: frames in, one acknowledgment each, in order.
//!
//! The messages of one connection are submitted one after the other: if one cannot be stored, none after it may be.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use pgw_core::delivery::Millis;
use pgw_core::transaction::{Body, unix_millis_now};
use pgw_outbox::Accepted;
use tokio::io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf};
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout};

use crate::ingest::hl7::Beginning;
use crate::ingest::mllp::abuse_limiter::AbuseLimiter;
use crate::ingest::mllp::ack::{AckOutcome, Fault, Stamp, acknowledgment};
use crate::ingest::mllp::codec::{Decoder, Event, HEAD_BYTES};
use crate::ingest::mllp::context::{MllpContext, OnUnavailable};
use crate::ingest::mllp::envelope;
use crate::ingest::mllp::msh::Msh;
use crate::ingest::mllp::route;
use crate::ingest::mllp::stream::Stream;
use crate::ingest::origin::Origin;
use crate::ingest::{Acceptor, Share, count};

/// Read at once. On the stack, and only between two awaits: an idle connection holds no buffer.
const READ_BYTES: usize = 16 * 1024;
/// What a connection may hold without asking the budget.
const UNASKED_BYTES: usize = 8 * 1024;
/// How long a connection waits for the budget before it is closed without an acknowledgment.
const BUDGET_WAIT: Duration = Duration::from_secs(2);
/// How long a peer may take to read its acknowledgment.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a larger message only the first segment is held while it is stored.
const LARGE_BYTES: usize = 64 * 1024;
/// How long the end of a TLS connection may take.
const GOODBYE_TIME: Duration = Duration::from_secs(1);

pub(super) struct Connection<A> {
    stream: Stream,
    peer: IpAddr,
    context: Arc<MllpContext<A>>,
    stop: watch::Receiver<bool>,
    decoder: Decoder,
    events: VecDeque<Event>,
    share: Share,
    limiter: AbuseLimiter,
    /// Milliseconds to wait before the next read, from the limiter.
    pause: Millis,
}

/// The connection is to be closed. The reason is counted where it is known; the peer only sees the close.
struct Closed;

/// Reads once into the decoder.
///
/// Uses `poll_read`: after a short read it knows that there is no more, which saves a system call per message.
struct Reader<'a, A> {
    stream: &'a mut Stream,
    decoder: &'a mut Decoder,
    events: &'a mut VecDeque<Event>,
    context: &'a MllpContext<A>,
    limiter: &'a mut AbuseLimiter,
    pause: &'a mut Millis,
}

impl<A> Future for Reader<'_, A> {
    /// Bytes read; 0 at the end of the connection.
    type Output = std::io::Result<usize>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut space = [MaybeUninit::uninit(); READ_BYTES];
        let mut buffer = ReadBuf::uninit(&mut space);
        std::task::ready!(Pin::new(&mut *this.stream).poll_read(context, &mut buffer))?;
        this.decoder.handle(buffer.filled(), this.context.now(), this.events);
        let (noise, abandoned) = (this.decoder.take_noise(), this.decoder.take_abandoned());
        if noise > 0 {
            this.context.counters.noise_bytes.fetch_add(noise, Ordering::Relaxed);
            *this.pause = this.limiter.noise(noise, this.context.now());
        }
        if abandoned > 0 {
            this.context.counters.unfinished.fetch_add(abandoned, Ordering::Relaxed);
        }
        Poll::Ready(Ok(buffer.filled().len()))
    }
}

impl<A: Acceptor> Connection<A> {
    pub(super) fn new(
        stream: Stream,
        peer: IpAddr,
        context: Arc<MllpContext<A>>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let config = &context.config;
        let timeout = u64::try_from(config.in_frame_timeout.as_millis()).unwrap_or(u64::MAX);
        let decoder = Decoder::new(config.frame_limit_bytes, timeout);
        let (share, limiter) = (context.budget.share(), AbuseLimiter::new(context.now()));
        Self { stream, peer, context, stop, decoder, events: VecDeque::new(), share, limiter, pause: 0 }
    }

    /// Runs until the peer, a fault or the end of the daemon closes it.
    pub(super) async fn run(mut self) {
        while self.turn().await.is_ok() {}
        if let Stream::Tls(_) = self.stream {
            // Closes TLS properly, so that a sender can tell this from a cut.
            let _ = timeout(GOODBYE_TIME, self.stream.shutdown()).await;
        }
    }

    /// Waits as long as the limiter demands. The sender's time inside a frame does not run meanwhile.
    async fn slow_down(&mut self) -> Result<(), Closed> {
        let pause = std::mem::take(&mut self.pause);
        if pause == 0 {
            return Ok(());
        }
        count(&self.context.counters.slowed_down);
        tokio::select! {
            _ = self.stop.wait_for(|stop| *stop) => return Err(Closed),
            () = sleep(Duration::from_millis(pause)) => {}
        }
        self.decoder.resumed(self.context.now());
        Ok(())
    }

    /// Waits for something to happen; then answers what has arrived.
    async fn turn(&mut self) -> Result<(), Closed> {
        self.slow_down().await?;
        let deadline = self.decoder.deadline();
        let time_is_over = async {
            match deadline.and_then(|at| self.context.started.checked_add(Duration::from_millis(at))) {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let reader = Reader {
            stream: &mut self.stream,
            decoder: &mut self.decoder,
            events: &mut self.events,
            context: &self.context,
            limiter: &mut self.limiter,
            pause: &mut self.pause,
        };
        let read = tokio::select! {
            // What has been sent counts first, then the time that it took.
            biased;
            read = reader => Some(read),
            _ = self.stop.wait_for(|stop| *stop) => return Err(Closed),
            () = time_is_over => None,
        };
        let open = match read {
            Some(Ok(0)) | Some(Err(_)) => {
                if self.decoder.finish(&mut self.events) {
                    count(&self.context.counters.unfinished);
                }
                matches!(read, Some(Ok(0)))
            }
            Some(Ok(_)) => true,
            None => {
                self.decoder.tick(self.context.now(), &mut self.events).map_err(|_| {
                    count(&self.context.counters.timeouts);
                    Closed
                })?;
                true
            }
        };
        if open {
            self.answer_all().await?;
        }
        if matches!(read, Some(Ok(0) | Err(_))) || *self.stop.borrow() {
            return Err(Closed);
        }
        self.ask_budget().await
    }

    async fn answer_all(&mut self) -> Result<(), Closed> {
        if self.events.is_empty() {
            return Ok(());
        }
        while let Some(event) = self.events.pop_front() {
            count(&self.context.counters.received);
            match event {
                Event::Frame(body) => self.frame(body).await?,
                Event::TooLarge { head, bytes } => {
                    let limit_bytes = self.context.config.frame_limit_bytes;
                    tracing::warn!(bytes, limit_bytes, "Refused an MLLP message that is too large");
                    self.refuse(&head, Fault::TOO_LARGE, bytes).await?;
                }
            }
        }
        self.decoder.resumed(self.context.now());
        self.share.release();
        Ok(())
    }

    /// Submits one message and answers it.
    async fn frame(&mut self, body: Body) -> Result<(), Closed> {
        let size = body.len() as u64;
        // What is held until the answer; the outbox frees a large message as soon as it is sealed.
        let front = front(&body);
        let Some(msh) = Msh::read(front.as_bytes()) else {
            return self.refuse(&body, Fault::of_no_message(body.as_bytes()), size).await;
        };
        let config = &self.context.config;
        if !config.allowed_senders.is_empty() && !config.allowed_senders.contains(&envelope::sender(&msh)) {
            return self.refuse(&body, Fault::SENDER_NOT_ALLOWED, size).await;
        }
        let lane = route::lane(&config.routes, &config.lane, &msh).clone();
        let submission = envelope::submission(&msh, lane, body);
        if let Err(error) = submission.check_texts() {
            return self.refuse(&submission.body, Fault::of_text(error), size).await;
        }
        match self.context.acceptor.submit(submission).await {
            Ok(accepted) => {
                self.count_accepted(accepted, &msh);
                self.context.stored();
                self.acknowledge(Some(&msh), AckOutcome::Stored).await.map(drop)
            }
            Err(refusal) if refusal.is_temporary() => {
                tracing::debug!(%refusal, "Answered 'try later'; the sender keeps the message");
                // A full queue drains in milliseconds; that alone is no reason to turn everyone away.
                if refusal != pgw_outbox::Refusal::Busy {
                    self.context.shut();
                }
                self.later(Some(&msh), Fault::UNAVAILABLE).await
            }
            Err(pgw_outbox::Refusal::TooLarge { .. }) => self.refuse(&front, Fault::TOO_LARGE, size).await,
            Err(refusal) => {
                // A checked configuration cannot cause this; a large message is not held for it.
                tracing::error!(%refusal, "The outbox refuses transactions from the MLLP door");
                self.refuse(&front, Fault::REFUSED, size).await
            }
        }
    }

    fn count_accepted(&self, accepted: Accepted, msh: &Msh<'_>) {
        let counters = &self.context.counters;
        counters.count_accepted(&accepted);
        if accepted.key_reused {
            tracing::debug!(id = %accepted.id, "Accepted a message whose number was used before");
        }
        if matches!(msh.processing_id(), b"T" | b"D") {
            count(&counters.not_production);
        }
    }

    /// Refuses a message of `size` bytes because of its content: quarantines what there is of it, then sends the negative
    /// answer. A sender continues after `AR`, so it gets that only for what is in quarantine.
    async fn refuse(&mut self, body: &Body, fault: Fault, size: u64) -> Result<(), Closed> {
        let msh = Msh::read(body.as_bytes());
        let is_cut = body.len() as u64 != size;
        let may_continue = if fault == Fault::TOO_LARGE {
            let head = &body.as_bytes()[..body.len().min(HEAD_BYTES)];
            let kept = if is_cut { &Body::new(head.to_vec()) } else { body };
            self.keep(kept, fault, msh.as_ref()).await;
            // Only its sender has the whole.
            true
        } else if is_cut {
            // A part must not be quarantined as if it were the whole.
            count(&self.context.counters.quarantine_failed);
            false
        } else {
            body.is_empty() || self.keep(body, fault, msh.as_ref()).await
        };
        if may_continue {
            count(&self.context.counters.refused);
            self.acknowledge(msh.as_ref(), AckOutcome::Refused(fault)).await?;
        } else {
            self.later(msh.as_ref(), Fault::NOT_KEPT).await?;
        }
        self.pause = self.limiter.refused(size, self.context.now());
        // More of the same may be queued behind it.
        if self.events.is_empty() { Ok(()) } else { self.slow_down().await }
    }

    /// The sender still has the message, and must send it again: the answer is what the site has chosen for that.
    async fn later(&mut self, msh: Option<&Msh<'_>>, fault: Fault) -> Result<(), Closed> {
        count(&self.context.counters.unavailable);
        let has_words = self.context.config.on_unavailable == OnUnavailable::Reject;
        // A sender that wants no such answer would take silence for acceptance.
        if has_words && self.acknowledge(msh, AckOutcome::Refused(fault)).await? {
            return Ok(());
        }
        Err(Closed)
    }

    /// Whether all of these bytes are in quarantine.
    async fn keep(&self, body: &Body, fault: Fault, msh: Option<&Msh<'_>>) -> bool {
        if !self.context.may_keep(self.peer, body.len() as u64) {
            count(&self.context.counters.quarantine_passed_over);
            return false;
        }
        let sender = msh.map_or_else(|| "hl7v2".to_owned(), envelope::sender_name);
        let (acceptor, bytes) = (self.context.acceptor.clone(), body.to_bytes());
        let origin = Origin::line("mllp", self.peer, &sender);
        // The semaphore is never closed.
        let _slot = self.context.quarantine_slot.acquire().await;
        let kept =
            tokio::task::spawn_blocking(move || acceptor.quarantine(fault.reason, &origin, &bytes)).await;
        let is_kept = matches!(kept, Ok(Ok(_)));
        if !is_kept {
            count(&self.context.counters.quarantine_failed);
            tracing::warn!(reason = fault.reason, "Could not keep a refused MLLP message in quarantine");
        }
        is_kept
    }

    /// One write for the answer; false: the sender wants none.
    async fn acknowledge(&mut self, msh: Option<&Msh<'_>>, outcome: AckOutcome) -> Result<bool, Closed> {
        let control_id = self.context.control_ids.next();
        let stamp = Stamp { now: unix_millis_now(), control_id: &control_id };
        let Some(framed) = acknowledgment(msh, outcome, stamp) else { return Ok(false) };
        match self.stream.try_write(&framed) {
            Ok(written) if written == framed.len() => {}
            Ok(written) => self.write(&framed[written..]).await?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.write(&framed).await?,
            Err(_) => return Err(Closed),
        }
        Ok(true)
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Closed> {
        let write = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        match timeout(WRITE_TIMEOUT, write).await {
            Ok(written) => written.map_err(|_| Closed),
            Err(_) => {
                count(&self.context.counters.timeouts);
                Err(Closed)
            }
        }
    }

    /// A large frame asks the budget before it grows; if no memory becomes free in time it is left for later.
    async fn ask_budget(&mut self) -> Result<(), Closed> {
        let held = self.decoder.held_bytes();
        let most = self.context.config.frame_limit_bytes;
        // The decoder grows by half, and never past the limit.
        let next = (held + (held / 2).max(READ_BYTES)).min(most).max(held);
        if held <= UNASKED_BYTES || self.share.covers(next) {
            return Ok(());
        }
        if timeout(BUDGET_WAIT, self.share.grow_to(next)).await.is_err() {
            count(&self.context.counters.unavailable);
            tracing::warn!("Closed an MLLP connection because too many large messages are under way");
            return Err(Closed);
        }
        self.decoder.resumed(self.context.now());
        Ok(())
    }
}

/// All of a small message; otherwise a copy of its first segment, as far as anything reads it.
fn front(body: &Body) -> Body {
    if body.len() <= LARGE_BYTES {
        return body.clone();
    }
    let most = &body.as_bytes()[..LARGE_BYTES];
    // A line end before the header does not end it.
    let begin = if let Beginning::Message(at) = Beginning::of(most) { at } else { 0 };
    let end = most[begin..].iter().position(|b| matches!(b, b'\r' | b'\n'));
    Body::new(most[..end.map_or(LARGE_BYTES, |end| begin + end)].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_of_a_large_message_is_its_header() {
        let rest = vec![b'x'; LARGE_BYTES];
        for before in ["", "\r\n", " \r ", "\u{feff}\r\n", "\u{b}"] {
            let header = format!("{before}MSH|^~\\&|A|B");
            let message = Body::new([header.as_bytes(), b"\rPID|", &rest].concat());
            assert_eq!(front(&message).as_bytes(), header.as_bytes(), "{before:?}");
        }
        let small = Body::new(&b"MSH|1\rPID|1"[..]);
        assert_eq!(front(&small).as_bytes(), small.as_bytes());
        assert_eq!(front(&Body::new(rest)).len(), LARGE_BYTES);
    }
}
