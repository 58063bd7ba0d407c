//! Reads a body within its limits: size, time, and the memory that all doors share.

use std::pin::Pin;
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use bytes::Bytes;
use tokio::time::{Instant, timeout, timeout_at};

use crate::ingest::Share;
use crate::ingest::mllp::codec::HEAD_BYTES;

/// What a request may hold without asking the budget.
const UNASKED_BYTES: usize = 8 * 1024;
/// How long a body waits for the memory that all doors share.
const BUDGET_WAIT: Duration = Duration::from_secs(2);
/// How much of an unwanted body is read, so that its sender can read the reason.
const DISCARD_BYTES: u64 = 256 * 1024;
const DISCARD_TIME: Duration = Duration::from_secs(2);

/// The result of reading a body.
pub(super) enum Received {
    /// It has arrived completely.
    Whole(Bytes),
    /// Larger than the limit: its first bytes, and its size as far as it was read.
    TooLarge { head: Bytes, bytes: u64 },
    /// It did not arrive in time.
    TooSlow,
    /// It ended early.
    Broken,
    /// No memory became free within a short wait.
    NoMemory,
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn take(mut body: Body, limit: usize, time: Duration, share: &mut Share) -> Received {
    let deadline = Instant::now() + time;
    // The announced size is no reason to reserve memory before the body arrives.
    let announced = body.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
    let mut kept: Vec<u8> = Vec::new();
    loop {
        let data = match timeout_at(deadline, data(&mut body)).await {
            Err(_) => return Received::TooSlow,
            Ok(Some(Err(()))) => return Received::Broken,
            Ok(None) => return Received::Whole(Bytes::from(kept)),
            Ok(Some(Ok(data))) => data,
        };
        let bytes = kept.len() + data.len();
        if bytes > limit {
            kept.truncate(HEAD_BYTES);
            kept.extend_from_slice(
                data.get(..HEAD_BYTES.saturating_sub(kept.len()).min(data.len())).unwrap_or_default(),
            );
            share.release();
            let rest = discard_until(&mut body, limit as u64, deadline).await;
            return Received::TooLarge { head: Bytes::from(kept), bytes: bytes as u64 + rest };
        }
        if bytes > kept.capacity() {
            // Grows by half, so that the buffer is not copied at each read; never past what is announced or allowed.
            let next = (bytes + bytes / 2).min(announced.unwrap_or(limit)).min(limit).max(bytes);
            if next > UNASKED_BYTES
                && !share.covers(next)
                && timeout(BUDGET_WAIT, share.grow_to(next)).await.is_err()
            {
                return Received::NoMemory;
            }
            kept.reserve_exact(next - kept.len());
        }
        kept.extend_from_slice(&data);
    }
}

/// Reads and drops a little of a body that is refused unread: closing on a sender that is still sending would destroy
/// the answer.
pub(super) async fn discard(mut body: Body) {
    discard_until(&mut body, DISCARD_BYTES, Instant::now() + DISCARD_TIME).await;
}

async fn discard_until(body: &mut Body, most: u64, deadline: Instant) -> u64 {
    let mut seen = 0;
    while seen < most {
        match timeout_at(deadline, data(body)).await {
            Ok(Some(Ok(data))) => seen += data.len() as u64,
            _ => break,
        }
    }
    seen
}

async fn data(body: &mut Body) -> Option<Result<Bytes, ()>> {
    loop {
        let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await?;
        match frame {
            Err(_) => return Some(Err(())),
            // Trailers carry nothing that is needed.
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    return Some(Ok(data));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::Budget;

    async fn taken(bytes: usize, limit: usize, budget: &Budget) -> Received {
        take(Body::from(vec![7; bytes]), limit, Duration::from_secs(5), &mut budget.share()).await
    }

    #[tokio::test]
    async fn a_body_is_whole_or_too_large() {
        let budget = Budget::new(1 << 20);
        assert!(matches!(taken(0, 10, &budget).await, Received::Whole(body) if body.is_empty()));
        assert!(matches!(taken(10, 10, &budget).await, Received::Whole(body) if body.len() == 10));
        let Received::TooLarge { head, bytes } = taken(10_000, 9_999, &budget).await else { panic!("taken") };
        assert_eq!((head.len(), bytes), (HEAD_BYTES, 10_000));
        assert_eq!(budget.free_bytes(), 1 << 20, "given back");
    }

    #[tokio::test]
    async fn without_memory_it_is_for_later() {
        let budget = Budget::new(20 * 1024);
        let mut other = budget.share();
        other.grow_to(10 * 1024).await;
        assert!(matches!(taken(15_000, 50_000, &budget).await, Received::NoMemory));
        drop(other);
        assert!(matches!(taken(15_000, 50_000, &budget).await, Received::Whole(_)));
    }
}
