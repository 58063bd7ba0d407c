//! Which store a hub answers from: pruning relies on those only that this gateway knows.

use pgw_core::transaction::Hub;
use pgw_core::wire::receipt::StoreId;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Driver;
use super::alarms::AGAIN;
use crate::uplink::known_stores::Judged;
use crate::uplink::orders::OrderError;

impl Driver {
    /// Whether pruning may rely on an answer from this store. Says so where it may not, once.
    pub(super) fn known_store(&mut self, hub: &Hub, store: StoreId, succeeds: &[StoreId]) -> bool {
        let judged = self.stores.judge(hub, store, succeeds);
        self.show_strange_store();
        match judged {
            Judged::Known => true,
            Judged::New => {
                tracing::info!(%hub, %store, "This gateway relies on this store of the hub once that is written down");
                self.save_stores(None);
                false
            }
            Judged::Strange(known) => {
                // Two hubs under one name answer in turn.
                let said = self.strange_said.is_some_and(|(said, at)| said == store && at.elapsed() < AGAIN);
                if !said {
                    self.strange_said = Some((store, Instant::now()));
                    let known = known.map_or_else(|| "an unknown one".to_owned(), |known| known.to_string());
                    tracing::error!(%hub, %store, known, "The hub answers from another store than before; nothing is pruned until an operator accepts it: `practice-gateway hub accept`");
                    let detail = format!(
                        "{hub} answers from store {store} instead of {known}: nothing is pruned until an operator accepts it (practice-gateway hub accept {hub} {store})"
                    );
                    self.announcements.event("alarm", "hub.store", "", detail);
                }
                false
            }
        }
    }

    /// An operator relies on a hub's store from now on. It is on the disk when the answer comes.
    pub(super) fn accept_store(
        &mut self,
        hub: Hub,
        store: StoreId,
        answer: oneshot::Sender<Result<(), OrderError>>,
    ) {
        if !self.stores.accept(&hub, store) {
            let waiting = self.stores.strange().get(&hub).copied();
            let _ = answer.send(Err(OrderError::NotThatStore { hub, store, waiting }));
            return;
        }
        tracing::info!(%hub, %store, "An operator has accepted the hub's store");
        self.announcements.event("info", "hub.store.accepted", "", format!("{hub}: store {store}"));
        self.show_strange_store();
        self.save_stores(Some(answer));
    }

    fn save_stores(&self, answer: Option<oneshot::Sender<Result<(), OrderError>>>) {
        let stores = self.stores.clone();
        tokio::task::spawn_blocking(move || {
            let saved = stores.save();
            if let Err(error) = &saved {
                tracing::error!(%error, "It could not be saved which stores of the hubs this gateway relies on");
            }
            if let Some(answer) = answer {
                let _ = answer.send(saved.map_err(|error| OrderError::NotSaved(error.to_string())));
            }
        });
    }

    fn show_strange_store(&mut self) {
        let strange = self.stores.strange().iter().next();
        self.link.now.strange_store = strange.map_or_else(String::new, |(hub, store)| {
            format!("{hub} answers from another store than before ({store}): nothing is pruned until an operator accepts it")
        });
    }
}
