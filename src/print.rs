//! What goes to standard output and standard error. Nobody may be listening any more, which is no reason to end
//! a run; other commands have nothing to show for themselves then, and say so. What comes out of files is shown as
//! text alone: no control character of it reaches a terminal.

use std::fmt::Arguments;
use std::io::{Error, Write};
use std::sync::{Mutex, PoisonError};

use circuit_framework::text;

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
        use std::io::Write;
        let line = format!($($text)*);
        let _ = writeln!(std::io::stderr(), "{}", circuit_framework::text::plain(&line));
    }};
}

pub(crate) use {say, tell};

/// What [`say!`] does.
pub(crate) fn line(line: Arguments) {
    note(writeln!(std::io::stdout(), "{}", text::plain(&line.to_string())));
}

/// Prints lines to standard output.
pub(crate) fn text(lines: &str) {
    note(std::io::stdout().write_all(text::plain(lines).as_bytes()));
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
