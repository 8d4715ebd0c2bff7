//! What goes to standard output and standard error. Nobody may be listening any more, which is no reason to end
//! a run; other commands have nothing to show for themselves then, and say so. What comes out of files is shown as
//! text alone: no control character of it reaches a terminal.

use std::fmt::Arguments;
use std::io::{Error, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use circuit_framework::text;

/// Whether this process prints nothing: another one of its job does.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Prints nothing from now on, but what [`complain`] is told.
pub(crate) fn be_silent() {
    SILENT.store(true, Ordering::Relaxed);
}

pub(crate) fn is_silent() -> bool {
    SILENT.load(Ordering::Relaxed)
}

/// Prints why the program ends to standard error, as far as somebody listens.
pub(crate) fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "{}", text::plain(message));
}

/// Why something that should be on standard output isn't.
static LOST: Mutex<Option<Error>> = Mutex::new(None);

/// Prints a line to standard output.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::print::line(format_args!($($text)*))
    };
}

/// Prints a line to standard error, as far as somebody listens.
macro_rules! tell {
    ($($text:tt)*) => {{
        if !$crate::print::is_silent() {
            $crate::print::complain(&format!($($text)*));
        }
    }};
}

pub(crate) use {say, tell};

/// What [`say!`] does.
pub(crate) fn line(line: Arguments) {
    if !is_silent() {
        note(writeln!(std::io::stdout(), "{}", text::plain(&line.to_string())));
    }
}

/// Prints lines to standard output.
pub(crate) fn text(lines: &str) {
    if !is_silent() {
        note(std::io::stdout().write_all(text::plain(lines).as_bytes()));
    }
}

fn note(written: Result<(), Error>) {
    if let Err(error) = written {
        LOST.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

/// Why something that was printed to standard output didn't get there, if anything.
pub(crate) fn lost() -> Option<Error> {
    note(std::io::stdout().flush());
    LOST.lock().unwrap_or_else(PoisonError::into_inner).take()
}
