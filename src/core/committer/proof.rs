//! What of a group is signed by its gateway.
//!
//! A signature over the chain value at a number proves everything before it, so that the last record of each lane is enough.
//! Where that one fails, something was changed on its way: a verified beginning is found by bisection.

use super::{Action, Committer, Lookup, Record, Refusal, Way};
use crate::transaction::LaneName;
use crate::wire::receipt::GapCode;

impl<R: Record> Committer<R> {
    /// Drops from the group what is not signed, as if it had not arrived, and says so once for each lane.
    pub(super) fn keep_what_is_signed(&mut self, store: &mut impl Lookup<R>, actions: &mut Vec<Action<R>>) {
        let mut told: Option<LaneName> = None;
        for record in self.drop_unsigned(store) {
            let lane = record.lane();
            if told.as_ref() != Some(lane) {
                let numbered = record.numbered();
                self.gap(GapCode::Unverified, lane, &numbered, numbered.sequence, actions);
                actions.push(Action::Refuse(lane.clone(), Refusal::Unsigned));
                told = Some(lane.clone());
            }
        }
    }

    /// Drops from the group what is not signed. Returns it, each lane's together and in order.
    pub(super) fn drop_unsigned(&mut self, store: &mut impl Lookup<R>) -> Vec<R> {
        let mut kept = vec![true; self.group.len()];
        for run in runs(&self.group) {
            // What follows an unsigned record in its lane goes with it: it would be stored out of order.
            let may_stay = run.follows.is_none_or(|before| kept[before]);
            let signed = if may_stay { signed(&mut self.group, &run.records, self.way, store) } else { 0 };
            for &index in &run.records[signed..] {
                kept[index] = false;
            }
        }
        if kept.iter().all(|kept| *kept) {
            return Vec::new();
        }
        let dropped = self.drop_from_group(&kept);
        let mut again: Option<&LaneName> = None;
        for record in &dropped {
            if again != Some(record.lane()) {
                self.begin_lane_again(record.lane(), store);
                again = Some(record.lane());
            }
        }
        dropped
    }

    /// The records that are not kept, each lane's together and in order.
    fn drop_from_group(&mut self, kept: &[bool]) -> Vec<R> {
        let mut dropped = Vec::new();
        let mut kept = kept.iter();
        for record in std::mem::take(&mut self.group) {
            if kept.next() == Some(&true) {
                self.group.push(record);
            } else {
                self.group_bytes -= record.bytes();
                dropped.push(record);
            }
        }
        dropped.sort_by(|a, b| a.lane().cmp(b.lane()));
        dropped
    }

    /// A lane as the store has it, and what is still staged of it.
    fn begin_lane_again(&mut self, lane: &LaneName, store: &impl Lookup<R>) {
        let Some(state) = self.lanes.get_mut(lane) else { return };
        state.begin_again(store.watermarks_of(lane));
        if state.is_out_of_use() {
            // The store takes nothing of it.
            return;
        }
        for record in self.group.iter().filter(|record| record.lane() == lane) {
            state.stage_again(lane, &record.numbered());
        }
    }
}

/// Records of one lane and epoch that follow each other, by their places in the group.
struct Run {
    records: Vec<usize>,
    /// The lane's record before them, of another epoch.
    follows: Option<usize>,
}

/// The group's runs, each lane's in order.
fn runs<R: Record>(group: &[R]) -> Vec<Run> {
    let mut order: Vec<usize> = (0..group.len()).collect();
    order.sort_by(|a, b| group[*a].lane().cmp(group[*b].lane()));
    let mut runs: Vec<Run> = Vec::new();
    for index in order {
        let last = runs.last().and_then(|run| run.records.last()).copied();
        let same_lane = last.filter(|last| group[*last].lane() == group[index].lane());
        let same_epoch = |last: &usize| group[*last].numbered().epoch == group[index].numbered().epoch;
        match (same_lane.filter(same_epoch), runs.last_mut()) {
            (Some(_), Some(run)) => run.records.push(index),
            _ => runs.push(Run { records: vec![index], follows: same_lane }),
        }
    }
    runs
}

/// How many of the run's records are signed. The last of them keeps its signature as evidence.
fn signed<R: Record>(group: &mut [R], run: &[usize], way: Way, store: &mut impl Lookup<R>) -> usize {
    let mut by = |count: usize| {
        let record = &group[run[count - 1]];
        store.signed_by(record, record.numbered().chain, way)
    };
    // The first `least` are signed; the last of the first `most` is not.
    let (mut least, mut most, mut key) = (0, run.len() + 1, None);
    let mut count = run.len();
    while least + 1 < most {
        match by(count) {
            Some(found) => (least, key) = (count, Some(found)),
            None => most = count,
        }
        count = least + (most - least) / 2;
    }
    for (place, &index) in run.iter().enumerate() {
        group[index].keep_head(if place + 1 == least { key } else { None });
    }
    least
}
