//! Tells the crate, in words, what it is built with: the compiler and candle's version.

use std::process::Command;

fn main() {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let version = Command::new(rustc).arg("--version").output();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    println!("cargo::rustc-env=RUSTC_VERSION={}", version.unwrap_or_default());

    let lock = std::fs::read_to_string("../../Cargo.lock").unwrap_or_default();
    let candle = (lock.split("[[package]]"))
        .find(|package| package.contains("name = \"candle-core\""))
        .and_then(|package| package.split("version = \"").nth(1)?.split('"').next())
        .unwrap_or("unknown");
    println!("cargo::rustc-env=CANDLE_VERSION={candle}");
    println!("cargo::rerun-if-changed=../../Cargo.lock");
}
