//! What a plugin was built against, written behind its library's last byte and read from there before
//! anything is opened. A library cut short has lost it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use circuit_framework::{Error, Result, refuse};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Ends every plugin file, behind the [`Stamp`] as JSON and its length as u64, little-endian.
const MAGIC: &[u8; 16] = b"circuit-plugin 1";

/// Which build of the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// SHA-256 of the program's runtime library, in hexadecimal.
    pub runtime: String,
    /// The rest says the same in words: what `rustc --version` prints,
    pub compiler: String,
    /// circuit-framework's version,
    pub framework: String,
    /// and candle-core's.
    pub candle: String,
}

/// What a plugin file says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    pub name: String,
    pub version: String,
    pub built_for: Fingerprint,
    /// SHA-256 of the library before the stamp, in hexadecimal.
    library: String,
}

/// The running program's runtime library, where the program's run path looks for it.
///
/// # Errors
/// If it isn't there.
pub fn runtime_library() -> Result<PathBuf> {
    let program = std::env::current_exe().map_err(Error::io(Path::new("the program itself")))?;
    let name =
        format!("{}circuit_runtime{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let folder = program.parent().unwrap_or(Path::new("/"));
    let candidates = [folder.join("deps").join(&name), folder.join(&name)];
    match candidates.iter().find(|path| path.exists()) {
        Some(path) => Ok(path.clone()),
        None => refuse!(
            "{} is missing: the program loads plugins only from the folder that cargo built it in",
            candidates[0].display()
        ),
    }
}

impl Fingerprint {
    /// The running program's, found out once.
    ///
    /// # Errors
    /// If its runtime library can't be read.
    pub fn of_this_program() -> Result<Self> {
        static PROGRAM: OnceLock<Fingerprint> = OnceLock::new();
        if let Some(program) = PROGRAM.get() {
            return Ok(program.clone());
        }
        let program = Self::read()?;
        Ok(PROGRAM.get_or_init(|| program).clone())
    }

    fn read() -> Result<Self> {
        let path = runtime_library()?;
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        Ok(Self {
            runtime: sha256(&bytes),
            compiler: env!("RUSTC_VERSION").to_owned(),
            framework: env!("CARGO_PKG_VERSION").to_owned(),
            candle: env!("CANDLE_VERSION").to_owned(),
        })
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { runtime, compiler, framework, candle } = self;
        let short = runtime.get(..12).unwrap_or(runtime);
        write!(f, "{short} ({compiler}, framework {framework}, candle {candle})")
    }
}

impl Stamp {
    /// The stamp of a library that was built for the running program.
    pub(crate) fn new(name: &str, version: &str, built_for: Fingerprint, library: &[u8]) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            built_for,
            library: sha256(library),
        }
    }

    /// The library with the stamp behind it: a plugin file.
    pub(crate) fn append_to(&self, mut library: Vec<u8>) -> Result<Vec<u8>> {
        let json = serde_json::to_vec(self).map_err(|error| Error::input(error.to_string()))?;
        library.extend(&json);
        library.extend((json.len() as u64).to_le_bytes());
        library.extend(MAGIC);
        Ok(library)
    }

    /// Reads a plugin file's stamp without opening it as a library.
    ///
    /// # Errors
    /// If the file is missing, is no plugin, or was cut short or changed.
    pub fn read(path: &Path) -> Result<Self> {
        Self::of(&std::fs::read(path).map_err(Error::io(path))?, path)
    }

    /// The stamp in a plugin file's bytes.
    pub(crate) fn of(file: &[u8], path: &Path) -> Result<Self> {
        let Some((library, stamp)) = split(file) else {
            refuse!(
                "{}: is no plugin, or was cut short: there is no fingerprint at its end; build one \
                 with `circuit-tuning plugin build`",
                path.display()
            );
        };
        if sha256(library) != stamp.library {
            refuse!(
                "{}: was damaged after it was built; build it again with `circuit-tuning plugin build`",
                path.display()
            );
        }
        Ok(stamp)
    }
}

/// The library and its stamp.
fn split(file: &[u8]) -> Option<(&[u8], Stamp)> {
    let (rest, length) = file.strip_suffix(MAGIC)?.split_last_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (library, json) = rest.split_at_checked(rest.len().checked_sub(length)?)?;
    Some((library, serde_json::from_slice(json).ok()?))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
