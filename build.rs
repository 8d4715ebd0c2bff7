//! With feature `runtime` the program links the runtime library and the standard library dynamically:
//! this gives it the run path to both.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_RUNTIME").is_none() {
        return;
    }
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let output = Command::new(rustc).args(["--print", "target-libdir"]).output();
    let standard_library =
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let origin = if cfg!(target_os = "macos") { "@loader_path" } else { "$ORIGIN" };
    for folder in
        [format!("{origin}/deps"), origin.to_owned(), standard_library.unwrap_or_default()]
    {
        println!("cargo::rustc-link-arg-bins=-Wl,-rpath,{folder}");
    }
}
