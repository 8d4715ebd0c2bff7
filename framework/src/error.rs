//! The one error type of the library crates. A message that a user can cause says on one line what
//! is wrong, where, and what would be right; the command line prints it as it is.

use std::path::{Path, PathBuf};

/// What can go wrong in the framework and in the plugins that build on it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something the user gave is wrong: an option, a file's content, a name.
    #[error("{0}")]
    Input(String),

    /// A file could not be read or written.
    #[error("{}: {cause}", path.display())]
    Io { path: PathBuf, cause: std::io::Error },

    /// A model's chat template can't be rendered, whatever it is asked to write.
    #[error("the model's chat template can't be rendered: {0}")]
    Template(String),

    /// Tuning came to a number that isn't finite, `what` says which; the model holds the last good
    /// step's weights.
    #[error(
        "{what} at step {step}: stopped there, so the model is as step {step} found it; a lower lr, a \
         warm-up or max_grad_norm keeps it finite"
    )]
    Diverged { step: usize, what: String },

    /// A result isn't a finite number, and nothing can be made of it.
    #[error("{0}; try model.dtype = \"float32\" or \"float64\", or other data")]
    NotFinite(String),

    /// The program was asked to stop, by a signal.
    #[error("stopped")]
    Stopped,

    /// Faithfulness is the share of the way from the metric without any edge to the whole model's, and
    /// there is no way: both are `metric`.
    #[error(
        "faithfulness is undefined: the metric is {metric} with all of the graph's edges and with none, \
         so that there is nothing to divide by; take another metric, ablation or data"
    )]
    NoEffect { metric: f64 },

    /// A plugin panicked; `what` names it and the place.
    #[error("{what}: {message}")]
    Panicked { what: String, message: String },

    /// A GPU has no room for a tensor; `room` is its free and all of its bytes, where it tells.
    #[error(
        "the GPU has too little memory ({}): smaller batches (tuning.micro_batch_size, \
         discovery.batch_size), activation_checkpointing or model.dtype = \"bfloat16\" take less",
        memory(*room)
    )]
    OutOfMemory { room: Option<(usize, usize)> },

    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(candle_core::Error),
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        // candle passes the driver's word on as text.
        match error.to_string().contains("CUDA_ERROR_OUT_OF_MEMORY") {
            true => Self::OutOfMemory { room: room() },
            false => Self::Tensor(error),
        }
    }
}

/// The free and all bytes of the GPU that this thread works with.
#[cfg(feature = "cuda")]
fn room() -> Option<(usize, usize)> {
    candle_core::cuda_backend::cudarc::driver::result::mem_get_info().ok()
}

#[cfg(not(feature = "cuda"))]
fn room() -> Option<(usize, usize)> {
    None
}

fn memory(room: Option<(usize, usize)>) -> String {
    let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
    match room {
        Some((free, total)) => format!("{:.1} of {:.1} GiB are free", gib(free), gib(total)),
        None => "it does not say how much".to_owned(),
    }
}

/// `Result` with the framework's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Input`] with this message.
    pub fn input(message: impl Into<String>) -> Self {
        Self::Input(message.into())
    }

    /// Adds `path` to an input/output error; made for `map_err`.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |cause| Self::Io { path: path.to_path_buf(), cause }
    }
}

/// Returns early with an [`Error::Input`] formatted like `format!`.
#[macro_export]
macro_rules! refuse {
    ($($message:tt)*) => {
        return Err($crate::Error::input(format!($($message)*)))
    };
}

/// `"; did you mean …?"` with the names nearest to `name`, or `"; known: …"` where none is near.
pub fn suggestion<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let mut near: Vec<(f64, &str)> = known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), *candidate))
        .filter(|(similarity, _)| *similarity > 0.75)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    let near: Vec<&str> = near.into_iter().take(3).map(|(_, name)| name).collect();
    match (known.is_empty(), near.is_empty()) {
        (true, _) => "; there are none".to_owned(),
        (_, true) => format!("; known: {}", known.join(", ")),
        _ => format!("; did you mean {}?", near.join(" or ")),
    }
}

#[cfg(test)]
mod tests {
    use super::Error;

    #[test]
    fn too_little_memory_is_said_on_one_line_with_the_figure() {
        let error = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")\n   0: a backtrace";
        let error = Error::from(candle_core::Error::Msg(error.to_owned()));
        assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
        let error = Error::OutOfMemory { room: Some((3 << 29, 80 << 30)) }.to_string();
        assert!(error.contains("1.5 of 80.0 GiB are free"), "{error}");
        assert_eq!(error.lines().count(), 1);
    }
}
