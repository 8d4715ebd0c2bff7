//! Showing how far long work is: a bar on a terminal, a line now and then elsewhere; both on
//! standard error. Warnings go there too.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use circuit_framework::progress::Progress;
use indicatif::{ProgressBar, ProgressStyle};

/// Lines printed for one piece of work where no terminal listens.
const LINES: usize = 10;

/// Shows progress as it is reported.
pub(crate) struct Display {
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    stage: &'static str,
    bar: Option<ProgressBar>,
    done: usize,
}

impl Display {
    pub(crate) fn new() -> Self {
        Self { state: RefCell::default() }
    }

    pub(crate) fn show(&self, progress: &Progress) {
        let mut state = self.state.borrow_mut();
        if state.stage != progress.stage || progress.done <= state.done {
            *state = State { stage: progress.stage, bar: bar(progress), done: 0 };
        }
        let figure = match progress.figure {
            Some((name, value)) => format!("{name} {value:.4}"),
            None => String::new(),
        };
        match &state.bar {
            Some(bar) => {
                bar.set_message(figure);
                bar.set_position(progress.done as u64);
                if progress.done >= progress.total {
                    bar.finish_and_clear();
                }
            }
            None => {
                let share = |done: usize| done * LINES / progress.total.max(1);
                if share(progress.done) != share(state.done) {
                    eprintln!("{} {}/{} {figure}", progress.stage, progress.done, progress.total);
                }
            }
        }
        state.done = progress.done;
    }
}

fn bar(progress: &Progress) -> Option<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let bar = ProgressBar::new(progress.total as u64);
    let style = ProgressStyle::with_template("{prefix:9} {wide_bar} {pos}/{len} {msg} {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(progress.stage);
    Some(bar)
}

/// Shows each warning once: a file is read for training, for evaluation, and again after tuning.
struct Warnings {
    shown: Mutex<BTreeSet<String>>,
}

impl log::Log for Warnings {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record) {
        let warning = record.args().to_string();
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if self.enabled(record.metadata()) && shown.insert(warning.clone()) {
            eprintln!("warning: {warning}");
        }
    }

    fn flush(&self) {}
}

/// Sends the libraries' warnings to standard error.
pub(crate) fn log_to_stderr() {
    static WARNINGS: Warnings = Warnings { shown: Mutex::new(BTreeSet::new()) };
    // Fails only if a logger is set already, which then does the same.
    let _ = log::set_logger(&WARNINGS).map(|()| log::set_max_level(log::LevelFilter::Warn));
}
