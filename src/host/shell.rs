//! The shell round every callback: a panic that reached the server would abort it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::log::warning;
use super::main_thread::state;

/// Runs a callback. A panic is logged and counted, and gives `None`.
pub(super) fn guarded<T>(what: &str, callback: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(callback)) {
        Ok(value) => Some(value),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            warning(std::ptr::null_mut(), &format!("keyward: internal error in {what}: {text}"));
            state().panics = state().panics.saturating_add(1);
            None
        }
    }
}
