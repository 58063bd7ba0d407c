//! The daemon's tasks in one set, stopped in order from source to sink.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{Id, JoinSet};

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
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its name, as spawned.
    pub name: String,
    /// `None`: it returned; otherwise why it failed.
    pub failure: Option<String>,
}

/// All tasks, named.
pub struct Tasks {
    set: JoinSet<Result<(), String>>,
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
        task: impl Future<Output = Result<(), String>> + Send + 'static,
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

    fn named(&mut self, ended: Result<(Id, Result<(), String>), tokio::task::JoinError>) -> Ended {
        let (id, failure) = match ended {
            Ok((id, outcome)) => (id, outcome.err()),
            // A panic's message may quote the data that was processed, so the log says only that there was a panic.
            Err(error) => {
                (error.id(), Some(String::from(if error.is_panic() { "a panic" } else { "cut off" })))
            }
        };
        let name = self.names.remove(&id).map_or_else(String::new, |(_, name)| name);
        Ended { name, failure }
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
                            let Ended { name, failure } = self.named(ended);
                            if let Some(failure) = failure {
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
        tasks.spawn(Stage::Uplink, "uplink", async { Err(String::from("no randomness")) });
        let ended = tasks.next().await;
        assert_eq!(ended, Ended { name: "uplink".into(), failure: Some("no randomness".into()) });
        tasks.spawn(Stage::Doors, "door", async { panic!("9434765919") });
        let ended = tasks.next().await;
        assert_eq!(ended, Ended { name: "door".into(), failure: Some("a panic".into()) });
    }
}
