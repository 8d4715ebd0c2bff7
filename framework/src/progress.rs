//! How long work says where it is. The framework prints nothing; whoever runs it decides what to
//! show.

/// Where a piece of work stands.
#[derive(Clone, Debug)]
pub struct Progress {
    /// What is being done: "discover", "tune", "evaluate".
    pub stage: &'static str,
    pub done: usize,
    pub total: usize,
    /// The name and current value of what is worth watching: the loss, the metric.
    pub figure: Option<(&'static str, f64)>,
}

/// Receives progress.
pub type Report<'a> = dyn Fn(Progress) + 'a;

/// Shows nothing.
pub fn silent(_: Progress) {}
