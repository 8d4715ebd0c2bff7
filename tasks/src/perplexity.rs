//! Perplexity on a plain text file: what tuning does to the model's language elsewhere. The text is cut
//! into windows that don't overlap.

use std::path::PathBuf;

use circuit_framework::{Dataset, Example, Result, Setting, Split, Task, files, refuse, register};
use serde::{Deserialize, Serialize};

/// The text, and how it is cut.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Perplexity {
    /// The text file.
    data: Option<PathBuf>,
    /// Tokens a window; the context is always a limit.
    window: usize,
    /// At most so many windows, from the start of the text.
    windows: Option<usize>,
}

impl Default for Perplexity {
    fn default() -> Self {
        Self { data: None, window: 512, windows: None }
    }
}

impl Task for Perplexity {
    fn default_metric(&self) -> &str {
        "loss"
    }

    fn load(&self, _split: Split, setting: &Setting) -> Result<Box<dyn Dataset>> {
        let Some(path) = &self.data else {
            refuse!("task `perplexity` needs data: a text file");
        };
        let tokenizer = setting.tokenizer()?;
        let prefix: Vec<u32> = tokenizer.prefix().into_iter().collect();
        let window = self.window.min(setting.context);
        if window < 2 {
            refuse!("task.window is {}; it must be at least 2 tokens", self.window);
        }
        let tokens = tokenizer.encode(&files::read_text(path)?)?;
        let examples: Vec<Example> = (tokens.chunks(window - prefix.len()).enumerate())
            .map(|(index, tokens)| {
                let tokens = [&prefix[..], tokens].concat();
                Example {
                    predicted: 1..tokens.len(),
                    tokens,
                    keys: Vec::new(),
                    origin: format!("{}: window {}", path.display(), index + 1),
                    ..Example::default()
                }
            })
            // A last window of one token predicts nothing.
            .filter(|example| example.tokens.len() > 1)
            .take(self.windows.unwrap_or(usize::MAX))
            .collect();
        if examples.is_empty() {
            refuse!("{}: the text is empty, or its windows are none", path.display());
        }
        Ok(Box::new(examples))
    }
}

register!(dyn Task, Perplexity, "perplexity", "perplexity on a plain text file");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::setting;

    #[test]
    fn windows_cover_the_text_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "To be, or not to be").unwrap();
        let data = Some(file.path().to_path_buf());
        let task = Perplexity { data, window: 6, windows: None };
        let examples = task.load(Split::Test, &setting(4096)).unwrap();
        let examples = examples.examples();
        let text: Vec<u32> = examples.iter().flat_map(|example| example.tokens.clone()).collect();
        assert_eq!(crate::tests::tokenizer().decode(&text).unwrap(), "To be, or not to b");
        assert_eq!(examples.len(), 3);
        let short = task.load(Split::Test, &setting(4)).unwrap();
        assert!(short.examples().iter().all(|example| example.tokens.len() <= 4));
    }
}
