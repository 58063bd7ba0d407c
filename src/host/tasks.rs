//! The daemon's tasks in one set, stopped in order from source to sink.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use pgw_core::consequence::Consequence;
use pgw_core::text::chain;
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};

use crate::daemon::Fatal;

/// Stages stop in this order; each has ended before the next one is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// The doors: no more input comes in.
    Doors,
    /// The control socket: no more requests come in.
    Control,
    /// The uplink: sending to the hub has ended.
    Uplink,
    /// Health: the last report has been made.
    Health,
}

/// All stages from source to sink, with the time that each may take.
const STAGES: [(Stage, Duration); 4] = [
    (Stage::Doors, Duration::from_secs(8)),
    (Stage::Control, Duration::from_secs(8)),
    (Stage::Uplink, Duration::from_secs(5)),
    (Stage::Health, Duration::from_secs(1)),
];

/// How a task has ended.
#[derive(Debug)]
pub struct Ended {
    /// Its name, as spawned.
    pub name: String,
    /// Why.
    pub reason: EndReason,
}

/// Why a task has ended.
#[derive(Debug, thiserror::Error)]
pub enum EndReason {
    /// It returned without an error.
    #[error("it returned without an error")]
    Returned,
    /// It failed.
    #[error(transparent)]
    Failed(Fatal),
    /// It panicked. The message may quote the data that was processed, so it is left out.
    #[error("it panicked")]
    Panicked,
    /// It was aborted.
    #[error("it was aborted")]
    Aborted,
}

impl EndReason {
    /// How a daemon ends whose task has ended early.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::Failed(fatal) => fatal.consequence(),
            Self::Returned | Self::Panicked | Self::Aborted => Consequence::BUG,
        }
    }
}

/// All tasks, named.
pub struct Tasks {
    set: JoinSet<Result<(), Fatal>>,
    names: HashMap<Id, (Stage, String)>,
    stops: Vec<(Stage, Duration, watch::Sender<bool>)>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    /// No tasks yet.
    #[must_use]
    pub fn new() -> Self {
        Self::with(STAGES)
    }

    fn with(stages: [(Stage, Duration); 4]) -> Self {
        let stops = stages.map(|(stage, deadline)| (stage, deadline, watch::Sender::new(false)));
        Self { set: JoinSet::new(), names: HashMap::new(), stops: stops.into() }
    }

    /// A receiver that turns true when the stage has to stop.
    pub fn stop_of(&self, stage: Stage) -> watch::Receiver<bool> {
        let sender = self.stops.iter().find(|(of, ..)| *of == stage);
        sender.map_or_else(|| watch::Sender::new(true).subscribe(), |(.., sender)| sender.subscribe())
    }

    /// Starts a task of a stage.
    pub fn spawn(
        &mut self,
        stage: Stage,
        name: impl Into<String>,
        task: impl Future<Output = Result<(), Fatal>> + Send + 'static,
    ) {
        let id = self.set.spawn(task).id();
        self.names.insert(id, (stage, name.into()));
    }

    /// The next task that ends; waits for ever if there is none.
    pub async fn next(&mut self) -> Ended {
        match self.set.join_next_with_id().await {
            Some(ended) => self.named(ended),
            None => std::future::pending().await,
        }
    }

    fn named(&mut self, ended: Result<(Id, Result<(), Fatal>), JoinError>) -> Ended {
        let (id, reason) = match ended {
            Ok((id, Ok(()))) => (id, EndReason::Returned),
            Ok((id, Err(fatal))) => (id, EndReason::Failed(fatal)),
            Err(error) if error.is_panic() => (error.id(), EndReason::Panicked),
            Err(error) => (error.id(), EndReason::Aborted),
        };
        let name = self.names.remove(&id).map_or_else(String::new, |(_, name)| name);
        Ended { name, reason }
    }

    /// Stops the stages one after the other and aborts tasks that do not end in time. Returns the names of those.
    pub async fn stop(&mut self) -> Vec<String> {
        let mut stragglers = Vec::new();
        let stops = std::mem::take(&mut self.stops);
        for (stage, deadline, sender) in &stops {
            sender.send_replace(true);
            let all_ended = async {
                while self.names.values().any(|(of, _)| of == stage) {
                    match self.set.join_next_with_id().await {
                        Some(ended) => {
                            let Ended { name, reason } = self.named(ended);
                            if !matches!(reason, EndReason::Returned) {
                                let failure = chain(&reason);
                                tracing::warn!(task = name, failure, "A task failed while stopping");
                            }
                        }
                        None => return,
                    }
                }
            };
            if tokio::time::timeout(*deadline, all_ended).await.is_err() {
                let late = self.names.values().filter(|(of, _)| of == stage).map(|(_, name)| name.clone());
                let before = stragglers.len();
                stragglers.extend(late);
                for name in stragglers.iter().skip(before) {
                    tracing::error!(
                        task = name,
                        seconds = deadline.as_secs(),
                        "A task did not stop in time and was aborted"
                    );
                }
                self.names.retain(|_, (of, _)| of != stage);
            }
        }
        self.set.abort_all();
        stragglers
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    async fn until(mut stop: watch::Receiver<bool>) {
        let _ = stop.wait_for(|stop| *stop).await;
    }

    #[tokio::test]
    async fn stages_stop_from_source_to_sink() {
        let mut tasks = Tasks::new();
        let order = Arc::new(Mutex::new(Vec::new()));
        for (stage, name) in [
            (Stage::Health, "health"),
            (Stage::Uplink, "uplink"),
            (Stage::Doors, "door 2"),
            (Stage::Control, "control"),
            (Stage::Doors, "door 1"),
        ] {
            let (stop, order) = (tasks.stop_of(stage), Arc::clone(&order));
            tasks.spawn(stage, name, async move {
                until(stop).await;
                // A stage that is stopped too early would overtake the others.
                for _ in 0..if stage == Stage::Doors { 50 } else { 1 } {
                    tokio::task::yield_now().await;
                }
                order.lock().unwrap().push(stage);
                Ok(())
            });
        }
        assert_eq!(tasks.stop().await, Vec::<String>::new());
        let order = order.lock().unwrap().clone();
        assert_eq!(order, [Stage::Doors, Stage::Doors, Stage::Control, Stage::Uplink, Stage::Health]);
    }

    #[tokio::test]
    async fn a_straggler_is_named_and_the_others_still_stop() {
        let mut tasks = Tasks::with(STAGES.map(|(stage, _)| (stage, Duration::from_millis(200))));
        tasks.spawn(Stage::Doors, "stuck", std::future::pending());
        let stop = tasks.stop_of(Stage::Uplink);
        let stopped = Arc::new(Mutex::new(false));
        let done = Arc::clone(&stopped);
        tasks.spawn(Stage::Uplink, "uplink", async move {
            until(stop).await;
            *done.lock().unwrap() = true;
            Ok(())
        });
        assert_eq!(tasks.stop().await, ["stuck"]);
        assert!(*stopped.lock().unwrap());
    }

    #[tokio::test]
    async fn the_task_that_ends_early_is_named_with_its_failure() {
        let mut tasks = Tasks::new();
        tasks.spawn(Stage::Uplink, "uplink", async {
            Err(Fatal::new("no upstream is configured", Consequence::CONFIGURATION))
        });
        let Ended { name, reason } = tasks.next().await;
        assert_eq!((name.as_str(), chain(&reason).as_str()), ("uplink", "no upstream is configured"));
        assert_eq!(reason.consequence(), Consequence::CONFIGURATION, "the task's, not always a bug's");
        tasks.spawn(Stage::Doors, "door", async { panic!("9434765919") });
        let Ended { name, reason } = tasks.next().await;
        assert_eq!((name.as_str(), chain(&reason).as_str()), ("door", "it panicked"));
        assert_eq!(reason.consequence(), Consequence::BUG);
    }
}
