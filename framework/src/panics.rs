//! Panics in code that is not this program's own, plugins and the tokenizers crate, as errors that name what
//! panicked, so that a run can save what it has reached.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

use crate::{Error, Result};

/// Where the last panic was, "file:line"; noted by [`note_panics`].
static LAST_PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Has every panic from now on noted for [`caught`] instead of printed; with `RUST_BACKTRACE` set it
/// is printed too.
pub fn note_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let location = panic.location().map(|at| format!("{}:{}", at.file(), at.line()));
        *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = location;
        if std::env::var_os("RUST_BACKTRACE").is_some() {
            print(panic);
        }
    }));
}

/// Calls, and turns a panic into an error that says `what` panicked, where and why.
///
/// # Errors
/// Returns the call's own error, and one if it panics.
pub fn caught<R>(what: &str, call: impl FnOnce() -> Result<R>) -> Result<R> {
    // Unwinding leaves weights and logs as the last finished step left them: they are only written
    // to by whole entries, after everything that can fail.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| Err(panicked(what, panic)))
}

/// Calls what can't return an error; a panic goes on, and whoever catches it is told that it was `what` that
/// panicked.
pub(crate) fn named<R>(what: impl FnOnce() -> String, call: impl FnOnce() -> R) -> R {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(returned) => returned,
        Err(panic) => resume_unwind(Box::new(panicked(&what(), panic))),
    }
}

/// The error of a panic. One that has been named keeps that name.
fn panicked(what: &str, panic: Box<dyn Any + Send>) -> Error {
    let panic = match panic.downcast::<Error>() {
        Ok(named) => return *named,
        Err(panic) => panic,
    };
    let message = (panic.downcast_ref::<String>().map(String::as_str))
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    let location = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
    let at = location.map_or(String::new(), |location| format!(" at {location}"));
    Error::Panicked { what: format!("{what} panicked{at}"), message: message.replace('\n', " ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_name_is_the_one_that_is_said() {
        let inner = || named(|| "the inner one".to_owned(), || -> usize { panic!("no {}", 7) });
        let error = caught("the outer one", || Ok(inner())).unwrap_err().to_string();
        assert!(
            error.starts_with("the inner one panicked") && error.ends_with(": no 7"),
            "{error}"
        );
        let error = caught("the outer one", || -> Result<()> { panic!("no") }).unwrap_err();
        assert!(error.to_string().starts_with("the outer one panicked"), "{error}");
        assert_eq!(named(|| "never".to_owned(), || 3), 3);
    }
}
