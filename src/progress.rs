//! Showing how far long work is: a bar on a terminal, a line now and then elsewhere; both on
//! standard error. What the libraries have to say goes there too.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use circuit_framework::progress::Progress;
use indicatif::{ProgressBar, ProgressStyle};

use crate::print::tell;

/// Lines printed for one piece of work where no terminal listens, at the most.
const LINES: usize = 10;
/// Between two lines of one piece of work there is at least this; its last line comes in any case.
const PAUSE: Duration = Duration::from_secs(1);

/// Whether progress and notes are left out; warnings never are.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Leaves out progress and notes from now on.
pub(crate) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Shows progress as it is reported.
pub(crate) struct Display {
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// The bar on a terminal, and whose it is.
    bar: Option<(&'static str, ProgressBar)>,
    /// Pieces of work by their stage. One can go on inside another, an evaluation while tuning.
    work: BTreeMap<&'static str, Work>,
}

/// How far a piece of work had come.
struct Work {
    done: usize,
    /// When it began or last printed a line.
    shown: Instant,
}

impl Display {
    pub(crate) fn new() -> Self {
        Self { state: RefCell::default() }
    }

    pub(crate) fn show(&self, progress: &Progress) {
        if is_quiet() {
            return;
        }
        let mut state = self.state.borrow_mut();
        match std::io::stderr().is_terminal() {
            true => state.move_bar(progress),
            false => {
                if let Some(line) = state.line(progress, Instant::now()) {
                    tell!("{line}");
                }
            }
        }
    }
}

impl State {
    fn move_bar(&mut self, progress: &Progress) {
        let bar = match &self.bar {
            Some((stage, bar)) if *stage == progress.stage && !bar.is_finished() => bar,
            _ => &self.bar.insert((progress.stage, bar(progress))).1,
        };
        bar.set_message(figure(progress));
        bar.set_position(progress.done as u64);
        if progress.done >= progress.total {
            bar.finish_and_clear();
        }
    }

    /// The line to print, if one is due: a tenth of the work was done since the last, or all of it.
    fn line(&mut self, progress: &Progress, now: Instant) -> Option<String> {
        let new = Work { done: 0, shown: now };
        let work = self.work.entry(progress.stage).or_insert(new);
        if progress.done <= work.done {
            *work = Work { done: 0, shown: now };
        }
        let tenth = |done: usize| done * LINES / progress.total.max(1);
        let ends = progress.done >= progress.total;
        let due = tenth(progress.done) != tenth(work.done) && now - work.shown >= PAUSE;
        if !(ends || due) {
            return None;
        }
        *work = Work { done: progress.done, shown: now };
        let Progress { stage, done, total, .. } = progress;
        Some(format!("{stage} {done}/{total} {}", figure(progress)).trim_end().to_owned())
    }
}

/// What is worth watching.
fn figure(progress: &Progress) -> String {
    progress.figure.map_or_else(String::new, |(name, value)| format!("{name} {value:.4}"))
}

fn bar(progress: &Progress) -> ProgressBar {
    let bar = ProgressBar::new(progress.total as u64);
    let style =
        ProgressStyle::with_template("{prefix:9} {wide_bar} {pos}/{len} {per_sec} {msg} {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(progress.stage);
    bar
}

/// Shows each message once: a file is read for training, for evaluation, and again after tuning.
struct Messages {
    shown: Mutex<BTreeSet<String>>,
}

impl log::Log for Messages {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        // Other crates' notes are of no use to who runs this program.
        let most = match metadata.target().starts_with("circuit_") && !is_quiet() {
            true => log::Level::Info,
            false => log::Level::Warn,
        };
        metadata.level() <= most
    }

    fn log(&self, record: &log::Record) {
        let prefix = if record.level() == log::Level::Info { "" } else { "warning: " };
        let message = format!("{prefix}{}", record.args());
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if self.enabled(record.metadata()) && shown.insert(message.clone()) {
            tell!("{message}");
        }
    }

    fn flush(&self) {}
}

/// Sends the libraries' warnings and notes to standard error.
pub(crate) fn log_to_stderr() {
    static MESSAGES: Messages = Messages { shown: Mutex::new(BTreeSet::new()) };
    // Fails only if a logger is set already, which then does the same.
    let _ = log::set_logger(&MESSAGES).map(|()| log::set_max_level(log::LevelFilter::Info));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(stage: &'static str, done: usize, total: usize) -> Progress {
        Progress { stage, done, total, figure: None }
    }

    #[test]
    fn a_line_in_ten_per_cent_also_where_an_evaluation_comes_between() {
        let mut state = State::default();
        let mut now = Instant::now();
        let mut lines = Vec::new();
        for step in 1..=200 {
            now += PAUSE;
            lines.extend(state.line(&at("tune", step, 200), now));
            state.line(&at("evaluate", 5, 10), now);
            state.line(&at("evaluate", 10, 10), now);
        }
        assert_eq!(lines.len(), LINES, "{lines:?}");
        assert_eq!(lines[9], "tune 200/200");
    }

    #[test]
    fn work_that_is_soon_done_has_one_line() {
        let mut state = State::default();
        let now = Instant::now();
        for _ in 0..2 {
            let lines: Vec<String> =
                (1..=50).filter_map(|done| state.line(&at("evaluate", done, 50), now)).collect();
            assert_eq!(lines, ["evaluate 50/50"]);
        }
    }
}
