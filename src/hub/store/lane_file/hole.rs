//! A lane of which a part is missing: it goes on once that has come again, or is given up.

use std::fs::File;

use pgw_core::transaction::{Epoch, rfc3339, unix_millis_now};

use super::LaneFile;
use crate::store::files::{failed, files_of, ordinal_of};
use crate::store::{StoreError, Through, late, line, tail};

impl LaneFile {
    /// Begins again where the row goes on, if what was missing is there again.
    pub(in crate::store) fn rejoin(&mut self) -> Result<(), StoreError> {
        if self.hole.as_ref().is_some_and(|hole| hole.until == self.watermarks) {
            *self = Self::open(&self.directory, self.name.clone())?;
            if self.hole.is_none() {
                tracing::info!(lane = %self.name, "What was missing of a lane has come again: its files follow on one another");
            }
        }
        Ok(())
    }

    /// Where its files go on after a part that is missing.
    pub(in crate::store) fn hole(&self) -> Option<Vec<Through>> {
        self.hole.as_ref().map(|hole| hole.until.clone())
    }

    /// Writes that what is missing is lost for good: the line goes on with the files after it.
    pub(in crate::store) fn close_hole(&mut self) -> Result<(), StoreError> {
        let Some(hole) = &self.hole else { return Ok(()) };
        let time = rfc3339(unix_millis_now());
        let epochs = self.epochs_named()?;
        line::write_group(&mut self.pending, &time, &self.watermarks);
        line::write_lost(&mut self.pending, &time, &hole.until, &epochs);
        self.pending_watermarks.clone_from(&hole.until);
        self.commit(u64::MAX)
    }

    /// The epochs of the line as its last file names them, whatever is missing before that.
    fn epochs_named(&self) -> Result<Vec<Epoch>, StoreError> {
        for path in files_of(&self.directory, &self.name)?.iter().rev().filter(|path| path.exists()) {
            let file = File::open(path).map_err(failed("open", path))?;
            let tail = tail::read(&file, &self.name).map_err(failed("read", path))?;
            if let Some(ends) = tail.watermarks {
                return Ok(ends.iter().map(|end| end.epoch).collect());
            }
        }
        Ok(Vec::new())
    }

    /// Sets the files after the hole aside, and continues where the lane ends before it. Returns how many files that are.
    pub(in crate::store) fn leave_hole(&mut self) -> Result<u64, StoreError> {
        let Some(hole) = self.hole.clone() else { return Ok(0) };
        self.cut_torn()?;
        let time = unix_millis_now();
        let mut last = self.ordinal;
        let mut moved = 0;
        let files = files_of(&self.directory, &self.name)?;
        for path in files.iter().skip_while(|path| **path != hole.before).filter(|path| path.exists()) {
            last = ordinal_of(path).unwrap_or(last + 1);
            let aside = late::set_aside_path(&self.base, time, last);
            pgw_durable::rename(path, &aside).map_err(failed("rename", path))?;
            moved += 1;
        }
        if self.length == 0 && self.path != self.base {
            // It was made for what would come again.
            pgw_durable::remove(&self.path).map_err(failed("remove", &self.path))?;
        }
        let index = self.base.with_extension("ids");
        pgw_durable::remove(&index).map_err(failed("remove", &index))?;
        *self = Self::open(&self.directory, self.name.clone())?;
        Ok(moved)
    }
}
