//! The notebook: it is checked in as it was executed, and it can be executed again.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{repository, skip};

const NOTEBOOK: &str = "notebooks/pandas.ipynb";

#[test]
fn every_cell_of_the_notebook_was_executed() {
    let notebook: Value = crate::command_line::json(&repository(NOTEBOOK));
    let cells = notebook["cells"].as_array().unwrap();
    for cell in cells.iter().filter(|cell| cell["cell_type"] == "code") {
        assert!(cell["execution_count"].is_number(), "{}", cell["source"]);
        let outputs = cell["outputs"].as_array().unwrap();
        // Neither an error nor a warning.
        let is_result = |output: &Value| output["output_type"] == "execute_result";
        assert!(outputs.iter().all(is_result), "{}", cell["source"]);
    }
}

#[test]
#[ignore = "slow: starts a Python kernel"]
fn the_notebook_runs() {
    let python = repository("target/python/bin/python");
    let has = |python: &mut Command| {
        let modules = python.args(["-c", "import nbclient, ipykernel, pandas, safetensors"]);
        modules.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    if !has(&mut Command::new(&python)) {
        return skip("no target/python with notebooks/requirements.txt; make it as .ci/run does")
            .unwrap_or_default();
    }
    let status = Command::new(&python)
        .arg(repository("notebooks/execute.py"))
        .arg(repository(NOTEBOOK))
        .env("CIRCUIT_TUNING", env!("CARGO_BIN_EXE_circuit-tuning"))
        .status()
        .unwrap();
    assert!(status.success());
}
