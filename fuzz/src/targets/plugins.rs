//! Plugin files, up to their stamp: none is opened.

use std::path::Path;

use anyhow::Result;

use super::{Reader, Target, checked};
use crate::fingerprint::{Fingerprint, Stamp};
use crate::mutate;

pub fn targets() -> Vec<Target> {
    vec![Target::new("plugin-stamp", mutate::stamp::mutate, plugins, plugin)]
}

/// A plugin file whose library is no library, as its stamp is read before it is opened.
fn plugins() -> Result<Vec<Vec<u8>>> {
    let built_for = Fingerprint {
        runtime: "0".repeat(64),
        compiler: "rustc 1.95.0".to_owned(),
        framework: "0.1.0".to_owned(),
        candle: "0.11.1".to_owned(),
    };
    let library = b"\x7fELF and so on".to_vec();
    Ok(vec![Stamp::new("mine", "0.1.0", built_for, &library).append_to(library)?])
}

fn plugin(folder: &Path) -> Result<Reader> {
    let path = folder.join("mine.plugin");
    Ok(Box::new(move |input| {
        std::fs::write(&path, input)?;
        // What is shown of it.
        checked(Stamp::read(&path))?.built_for.to_string();
        Ok(())
    }))
}
