//! Locking. A leaf: it imports nothing of ours, anyone may use it.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex, even if whoever held it panicked: whatever a mutex guards here is valid after every statement.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
