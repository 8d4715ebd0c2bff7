//! Compiling a plugin against the running program's own artefacts: the only way that gives both one
//! framework and one candle.
//!
//! Cargo builds the plugin's sources from a second manifest, in the plugin's target folder, whose
//! dependencies on what the framework hands on (itself, candle, serde, …) are stand-ins that re-export
//! the program's runtime library. Every other dependency is the plugin's own.

use std::path::{Path, PathBuf};
use std::process::Command;

use circuit_framework::{Error, Result, files, refuse};
use toml::{Table, Value};

use crate::fingerprint::{Fingerprint, Stamp, runtime_library};

/// The crates that a plugin takes from the program, each with what stands in for it.
const SHARED: [(&str, &str); 6] = [
    ("circuit-framework", "pub use circuit_runtime::*;"),
    ("candle-core", "pub use circuit_runtime::candle_core::*;"),
    ("inventory", "pub use circuit_runtime::inventory::*;"),
    ("schemars", "pub use circuit_runtime::schemars::*;"),
    ("serde", "pub use circuit_runtime::serde::*;"),
    ("serde_json", "pub use circuit_runtime::serde_json::*;"),
];

/// Compiles the plugin crate in `folder` and returns the plugin file: `target/NAME.plugin` in it.
///
/// # Errors
/// If the crate can't be read or doesn't compile, or the program's artefacts aren't beside it.
pub fn compile(folder: &Path) -> Result<PathBuf> {
    let folder = folder.canonicalize().map_err(Error::io(folder))?;
    let manifest_path = folder.join("Cargo.toml");
    let manifest: Table = toml::from_str(&files::read_text(&manifest_path)?)
        .map_err(|error| Error::input(format!("{}: {error}", manifest_path.display())))?;
    let field = |key: &str| match manifest.get("package").and_then(|p| p.get(key)?.as_str()) {
        Some(text) => Ok(text.to_owned()),
        None => {
            Err(Error::input(format!("{}: there is no package.{key}", manifest_path.display())))
        }
    };
    let (name, version) = (field("name")?, field("version")?);
    let program = Fingerprint::of_this_program()?;
    check_compiler(&program)?;

    let target = folder.join("target");
    let scratch = target.join("plugin");
    write_scratch(&scratch, &standing_in(&manifest, &folder))?;
    run_cargo(&scratch, &target)?;

    let file_name = format!(
        "{}{}{}",
        std::env::consts::DLL_PREFIX,
        name.replace('-', "_"),
        std::env::consts::DLL_SUFFIX
    );
    let library = target.join("release").join(file_name);
    let library = std::fs::read(&library).map_err(Error::io(&library))?;
    let plugin = target.join(format!("{name}.plugin"));
    let stamped = Stamp::new(&name, &version, program, &library).append_to(library)?;
    // In one step: a program that has the old file open keeps it.
    files::write_atomically(&plugin, &stamped)?;
    Ok(plugin)
}

fn check_compiler(program: &Fingerprint) -> Result<()> {
    let output = Command::new("rustc").arg("--version").output();
    let output = output.map_err(Error::io(Path::new("rustc")))?;
    let here = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if here != program.compiler {
        refuse!(
            "this program was built by {}, but the compiler here is {here}; build the program again, \
             or select its compiler with `rustup override set`",
            program.compiler
        );
    }
    Ok(())
}

/// The plugin's manifest, moved to another folder and with stand-ins for the shared crates.
fn standing_in(manifest: &Table, folder: &Path) -> Table {
    let path = |path: PathBuf| Value::String(path.display().to_string());
    let mut scratch = manifest.clone();
    scratch.remove("dev-dependencies");
    scratch.insert("workspace".to_owned(), Table::new().into());
    let mut library = Table::new();
    if let Some(Value::Table(given)) = scratch.get("lib") {
        library.clone_from(given);
    }
    let source = library.get("path").and_then(Value::as_str).unwrap_or("src/lib.rs");
    library.insert("path".to_owned(), path(folder.join(source)));
    library.insert("crate-type".to_owned(), vec!["cdylib"].into());
    scratch.insert("lib".to_owned(), library.into());
    for table in ["dependencies", "build-dependencies"] {
        let Some(Value::Table(dependencies)) = scratch.get_mut(table) else {
            continue;
        };
        for (name, dependency) in dependencies.iter_mut() {
            if SHARED.iter().any(|(shared, _)| shared == name) {
                let stand_in = path(PathBuf::from("shared").join(name));
                *dependency = Table::from_iter([("path".to_owned(), stand_in)]).into();
            } else if let Some(Value::String(own)) = dependency.get_mut("path") {
                *own = folder.join(&*own).display().to_string();
            }
        }
    }
    scratch
}

fn write_scratch(scratch: &Path, manifest: &Table) -> Result<()> {
    let write = |path: &Path, content: &str| {
        // Left alone where nothing changed, so that cargo doesn't build it again.
        if std::fs::read_to_string(path).is_ok_and(|old| old == content) {
            return Ok(());
        }
        let folder = path.parent().unwrap_or(scratch);
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        files::write_atomically(path, content.as_bytes())
    };
    write(&scratch.join("Cargo.toml"), &manifest.to_string())?;
    for (name, source) in SHARED {
        let folder = scratch.join("shared").join(name);
        let manifest =
            format!("[package]\nname = \"{name}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n");
        write(&folder.join("Cargo.toml"), &manifest)?;
        write(&folder.join("src/lib.rs"), &format!("{source}\n"))?;
    }
    Ok(())
}

fn run_cargo(scratch: &Path, target: &Path) -> Result<()> {
    let runtime = runtime_library()?;
    let artefacts = runtime.parent().unwrap_or(Path::new("/"));
    let flags = [
        "-Cprefer-dynamic".to_owned(),
        // A crate that the plugin and the program both use, each its own build of it, needs two names.
        "-Cmetadata=circuit-plugin".to_owned(),
        format!("-Ldependency={}", artefacts.display()),
        format!("--extern=circuit_runtime={}", runtime.display()),
    ];
    let status = Command::new("cargo")
        .args(["build", "--release", "--lib", "--quiet"])
        .current_dir(scratch)
        .env("CARGO_TARGET_DIR", target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .status()
        .map_err(Error::io(Path::new("cargo")))?;
    if !status.success() {
        refuse!("{}: the plugin doesn't compile; see cargo's messages above", scratch.display());
    }
    Ok(())
}
