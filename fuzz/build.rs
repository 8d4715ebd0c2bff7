//! What the runtime crate's own build says of compiler and candle: the fingerprint's file is compiled here too.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=RUSTC_VERSION=fuzzing");
    println!("cargo::rustc-env=CANDLE_VERSION=fuzzing");
}
