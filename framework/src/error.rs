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

    /// The loss stopped being a number; the model holds the last good step's weights.
    #[error(
        "the loss is {loss} at step {step}: stopped before the update, so the model is as step \
         {step} found it; a lower lr, a warm-up or max_grad_norm keeps it finite"
    )]
    Diverged { step: usize, loss: f64 },

    /// A plugin panicked; `what` names it and the place.
    #[error("{what}: {message}")]
    Panicked { what: String, message: String },

    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
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
