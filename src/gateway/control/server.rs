//! What the daemon does for its commands.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use pgw_core::transaction::{Body, Kind, Lane, Position};
use pgw_core::wire::limits::Text;
use pgw_host::control::server::PROGRESS;
use pgw_host::control::{Conversation, Handler};
use pgw_outbox::{EventType, Outbox, Submission};
use tokio::time::timeout;

use crate::control::answers::{SendReply, list, show, verify_lanes};
use crate::control::context::{BUDGET_WAIT, ControlConfig, ControlContext, RequestError};
use crate::control::{Reply, Request, hand_carry, orders, quarantined};
use crate::ingest::slip::AcceptanceSlip;
use crate::ingest::{Budget, Counters, StatusSource, count, media};
use crate::listing;
use crate::uplink::Orders;

/// The daemon's side of its control socket.
pub struct Commands {
    context: Arc<ControlContext>,
}

impl Commands {
    /// `orders`: where a person's orders to the uplink go, if there is an uplink.
    #[must_use]
    pub fn new(
        config: ControlConfig,
        outbox: Outbox,
        status: StatusSource,
        counters: Arc<Counters>,
        budget: Budget,
        orders: Option<Orders>,
    ) -> Self {
        Self { context: Arc::new(ControlContext { config, outbox, status, counters, budget, orders }) }
    }
}

impl Handler for Commands {
    type Request = Request;
    type Reply = Reply;

    async fn answer(&self, request: Request, client: &mut Conversation) -> io::Result<()> {
        match request {
            Request::List { .. }
            | Request::Show { .. }
            | Request::Verify { .. }
            | Request::Export { .. }
            | Request::QuarantineList {}
            | Request::QuarantineShow { .. } => {
                let context = Arc::clone(&self.context);
                client.stream_of(move |send| lines_of(&context, request, send).map(|()| Reply::End {})).await
            }
            Request::Resend { lane, from, through } => self.resend(lane, (from, through), client).await,
            Request::QuarantineBytes { id } => {
                let mut share = self.context.budget.share();
                let (reply, bytes) = quarantined::bytes(&self.context, id, client.user()?, &mut share).await;
                client.send_line(&reply).await?;
                client.send(&bytes).await
            }
            request => {
                let reply = self.reply_to(request, client).await?;
                client.send_line(&reply).await
            }
        }
    }
}

impl Commands {
    /// The reply to a request that has a single reply.
    async fn reply_to(&self, request: Request, client: &mut Conversation) -> io::Result<Reply> {
        let context = Arc::clone(&self.context);
        Ok(match request {
            Request::Submit { lane, event_type, content_type, key, body_bytes } => {
                self.submit(lane, event_type, content_type, key, body_bytes, client).await?
            }
            Request::Watermark { lane } => {
                Reply::Watermark { confirmed: listing::confirmed(&context.outbox, &lane) }
            }
            Request::QuarantineRelease { id, lane, event_type, content_type } => {
                let wanted = quarantined::Wanted { lane, event_type, content_type };
                quarantined::release(&context, id, wanted, client.user()?).await
            }
            Request::QuarantineDiscard { id, reason } => {
                quarantined::discard(&context, id, reason, client.user()?).await
            }
            Request::Void { lane, from, through, reason, act } => {
                orders::void(context, lane, (from, through), reason, act).await
            }
            Request::RetryHead { lane } => orders::retry_head(context.orders.as_ref(), lane).await,
            Request::AcceptStore { hub, store } => {
                orders::accept_store(context.orders.as_ref(), hub, store).await
            }
            Request::Receipt(line) => orders::receipt(&context.outbox, context.orders.as_ref(), line).await,
            // The source may read the disk.
            Request::Status {} => match tokio::task::spawn_blocking(move || (context.status)()).await {
                Ok(status) => Reply::Status { status },
                Err(_) => RequestError::Panicked("could not collect the status").into(),
            },
            // Requests with answers of many lines: see [`Handler::answer`].
            _ => RequestError::Panicked("the request has no single reply").into(),
        })
    }

    /// Reports progress every few seconds, so that the client knows that the daemon is still working.
    async fn resend(
        &self,
        lane: Lane,
        range: (Position, Position),
        client: &mut Conversation,
    ) -> io::Result<()> {
        let mut progress = match orders::resend(self.context.orders.as_ref(), &lane, range).await {
            Ok(progress) => progress,
            Err(error) => return client.send_line(&Reply::Failed(error.into())).await,
        };
        loop {
            let gone = timeout(PROGRESS, progress.wait_for(|progress| progress.ended.is_some()))
                .await
                .is_ok_and(|ended| ended.is_err());
            let reply = orders::resent(progress.borrow().clone(), gone, lane.clone(), range.1);
            client.send_line(&reply).await?;
            if pgw_host::control::Reply::is_last(&reply) {
                return Ok(());
            }
        }
    }

    async fn submit(
        &self,
        lane: Lane,
        event_type: String,
        content_type: String,
        key: String,
        body_bytes: u64,
        client: &mut Conversation,
    ) -> io::Result<Reply> {
        let refused = |temporary, reason: String| Ok(Reply::Refused { temporary, reason });
        let config = &self.context.config;
        if !media::is_event_type(&event_type) {
            return refused(false, "the type must be 1 to 256 letters, digits, and . - _ : /".to_owned());
        }
        if !media::is_media_type(&content_type) {
            return refused(
                false,
                "the content type must be a media type of at most 256 characters".to_owned(),
            );
        }
        if let Err(error) = Text::Key.check(&key) {
            return refused(false, error.to_string());
        }
        let limit = config.max_body_bytes;
        let size = match usize::try_from(body_bytes) {
            Ok(size) if body_bytes <= limit => size,
            _ => {
                return refused(
                    false,
                    format!("the body has {body_bytes} bytes, more than the limit of {limit}"),
                );
            }
        };
        let mut share = self.context.budget.share();
        if timeout(BUDGET_WAIT, share.grow_to(size)).await.is_err() {
            return refused(true, "too many large messages are under way".to_owned());
        }
        client.send_line(&Reply::Send {}).await?;
        let mut body = vec![0; size];
        client.read_exact(&mut body).await?;
        let counters = Arc::clone(&self.context.counters);
        count(&counters.received);
        let submission = Submission {
            lane: lane.clone(),
            kind: Kind::Transaction,
            event_type: EventType::Given(event_type),
            content_type,
            sender: "cli".to_owned(),
            key,
            shows_key: true,
            correlation_id: String::new(),
            trace_parent: String::new(),
            body: Body::new(Bytes::from(body)),
        };
        match self.context.outbox.submit(submission).await {
            Ok(accepted) => {
                counters.count_accepted(&accepted);
                Ok(Reply::Accepted(AcceptanceSlip::new(lane, &accepted)))
            }
            Err(refusal) => {
                // Not to quarantine: a person who submits a file has it, and reads the reason.
                counters.count_refused(&refusal);
                Ok(refusal.into())
            }
        }
    }
}

/// Sends all lines of an answer that has many. Blocking.
fn lines_of(context: &ControlContext, request: Request, send: SendReply<'_>) -> Result<(), RequestError> {
    let ControlContext { outbox, config, .. } = context;
    match request {
        Request::List { lane, from, limit } => list(outbox, lane.as_ref(), from, limit, send),
        Request::Show { lane, which } => show(outbox, lane.as_ref(), which, send),
        Request::Verify { lane } => verify_lanes(outbox, lane.as_ref(), send),
        Request::QuarantineList {} => quarantined::list(outbox, send),
        Request::QuarantineShow { id } => quarantined::show(outbox, id, send),
        Request::Export { lane, from, ends } => {
            let source = hand_carry::Source::Running(context.orders.as_ref());
            hand_carry::export(outbox, config, source, &hand_carry::Wanted { lane, from, ends }, send)
        }
        // Requests with a single reply: see [`Commands::reply_to`].
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
