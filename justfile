# The quick loop: everything but the tests marked slow.
quick:
    cargo test --workspace

# What CI runs.
ci:
    .ci/run
