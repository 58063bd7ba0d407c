//! Where a test makes the folder door fail, or does something between two steps.

use std::io;
use std::sync::Mutex;

use super::settled_files::Point;

type Action = Box<dyn FnOnce() + Send>;

/// Points that fail, and how many times more; points where a test acts, once.
#[derive(Default)]
pub(crate) struct Faults {
    failing: Mutex<Vec<(Point, u32)>>,
    actions: Mutex<Vec<(Point, Action)>>,
}

impl Faults {
    pub(crate) fn fail(&self, point: Point, times: u32) {
        self.failing.lock().unwrap().push((point, times));
    }

    pub(crate) fn at(&self, point: Point, action: impl FnOnce() + Send + 'static) {
        self.actions.lock().unwrap().push((point, Box::new(action)));
    }

    pub(super) fn check(&self, point: Point) -> io::Result<()> {
        let mut actions = self.actions.lock().unwrap();
        if let Some(index) = actions.iter().position(|(at, _)| *at == point) {
            actions.remove(index).1();
        }
        let mut failing = self.failing.lock().unwrap();
        match failing.iter_mut().find(|(at, left)| *at == point && *left > 0) {
            Some((_, left)) => {
                *left -= 1;
                Err(io::ErrorKind::ReadOnlyFilesystem.into())
            }
            None => Ok(()),
        }
    }
}
