//! Locks that ignore poisoning.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A panic while the lock was held leaves consistent numbers: each change is a single assignment.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
