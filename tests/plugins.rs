//! Run-time plugins from end to end: crates made outside the workspace, built against this very
//! program, loaded, run; and what doesn't fit, refused before it is opened.

use std::path::{Path, PathBuf};

use crate::command_line::{json, program, refuses, succeeds, words};
use crate::support::repository;

/// Makes a plugin crate of a kind in the folder, with a dependency of its own that its code uses.
fn new(folder: &Path, name: &str, kind: &str) {
    succeeds(folder, &words(&format!("plugin new {name} --kind {kind}")));
    let edit = |file: &str, more: &str| {
        let path = folder.join(name).join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.replacen("[dependencies]\n", &format!("[dependencies]\n{more}"), 1);
        std::fs::write(&path, text).unwrap();
    };
    edit("Cargo.toml", "itoa = \"1\"\n");
    let library = folder.join(name).join("src/lib.rs");
    let text = std::fs::read_to_string(&library).unwrap();
    let uses = "\n/// Seven in digits.\npub fn seven() -> String {\n    \
                itoa::Buffer::new().format(7).to_owned()\n}\n";
    std::fs::write(&library, text + uses).unwrap();
}

fn build(folder: &Path, name: &str) -> PathBuf {
    PathBuf::from(succeeds(folder, &words(&format!("plugin build {name}"))).trim())
}

/// The scores that `discover` writes, as bytes: the tensor alone, since the header names the metric.
fn scores(folder: &Path, arguments: &str) -> Vec<u8> {
    succeeds(folder, &words(&format!("discover --force --scores scores.safetensors {arguments}")));
    let file = std::fs::read(folder.join("scores.safetensors")).unwrap();
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    file[8 + header..].to_vec()
}

#[test]
fn every_kind_is_made_built_checked_and_run() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(
        folder.join("tokens.jsonl"),
        "{\"tokens\": [1, 2, 3, 4], \"key_positions\": [3], \"wrong\": [5]}\n",
    )
    .unwrap();
    let model = "--model my-model --set model.random_init=1 --task tokens --data tokens.jsonl \
                 --top-n 9";
    for (kind, check, uses) in [
        ("metric", "", "--metric my_metric --set metric.k=2"),
        ("selector", "", "--selector my_selector"),
        ("model", "--model my-model", model),
    ] {
        let name = format!("my-{kind}");
        new(folder, &name, kind);
        let plugin = build(folder, &name);
        let plugin = plugin.to_str().unwrap();
        let checked = succeeds(folder, &words(&format!("plugin check {plugin} {check}")));
        assert!(checked.contains(&format!("`my_{kind}`: conforms")), "{checked}");
        if kind == "model" {
            let other = program(folder, &words(&format!("plugin check {plugin}")));
            let shown = String::from_utf8(other.stdout).unwrap();
            assert!(shown.contains("embedded has model_type \"gpt2\"; give --model"), "{shown}");
            assert!(!other.status.success());
        }
        let listed = succeeds(folder, &words(&format!("list --plugin {plugin}")));
        assert!(listed.contains(&format!("my_{kind}")), "{listed}");
        if kind != "selector" {
            scores(folder, &format!("--plugin {plugin} {uses}"));
        }
        let tune = format!("tune --plugin {plugin} {uses} --steps 2 --out {kind}");
        succeeds(folder, &words(&tune));
        // The run's own configuration names the plugin, and so runs again as it is.
        let again = format!("run {kind}/config.toml --out {kind}-again");
        succeeds(folder, &words(&again));
        let after = |run: &str| json(&folder.join(run).join("summary.json"))["after"].clone();
        assert_eq!(after(kind), after(&format!("{kind}-again")));
    }
}

/// The template as it is, on the built-in model, and on a folder without weights.
#[test]
fn the_task_template_conforms_and_runs_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    new(folder, "my-task", "task");
    let plugin = build(folder, "my-task");
    let plugin = plugin.to_str().unwrap();
    let check = |rest: &str| succeeds(folder, &words(&format!("plugin check {plugin} {rest}")));
    let conforms = |checked: &str| assert!(checked.contains("`my_task`: conforms"), "{checked}");
    conforms(&check(""));
    conforms(&check("--set task.names=['man','woman','child']"));
    let embedded = repository("models/embedded");
    std::fs::create_dir(folder.join("bare")).unwrap();
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(embedded.join(file), folder.join("bare").join(file)).unwrap();
    }
    refuses(folder, &words(&format!("plugin check {plugin} --model bare")), &["do not conform"]);
    conforms(&check("--model bare --random-init 7"));
    succeeds(
        folder,
        &words(&format!("tune --plugin {plugin} --task my_task --steps 2 --out task")),
    );
    let summary = json(&folder.join("task/summary.json"));
    assert!(summary["after"]["logit_diff"].is_number());
    assert_eq!(summary["task"], "my_task");
}

/// A metric that can be computed on its own task's examples alone conforms on those; and a crate may
/// register two plugins.
#[test]
fn a_metric_for_one_task_conforms_on_that_task() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, &words("plugin new mine --kind task"));
    succeeds(folder, &words("plugin new own --kind metric"));
    let read = |path: &str| std::fs::read_to_string(folder.join(path)).unwrap();
    let picky = |task: &str| {
        read("own/src/lib.rs").replace("    fn check(", &format!("{task}\n    fn check(")).replace(
            "example.keys.is_empty()",
            "example.keys.is_empty() || !example.origin.starts_with(\"mine\")",
        )
    };
    let library = read("mine/src/lib.rs").replace("#[cfg(test)]", "mod own;\n\n#[cfg(test)]");
    std::fs::write(folder.join("mine/src/lib.rs"), library).unwrap();
    let check = |metric: String| {
        std::fs::write(folder.join("mine/src/own.rs"), metric).unwrap();
        let plugin = build(folder, "mine");
        program(folder, &["plugin", "check", plugin.to_str().unwrap()])
    };
    let unsaid = check(picky(""));
    let shown = String::from_utf8(unsaid.stdout).unwrap();
    assert!(shown.contains("task `mine`: conforms"), "{shown}");
    assert!(shown.contains("metric `own`: does not conform: generated sentence"), "{shown}");
    assert!(!unsaid.status.success());
    let said =
        check(picky("    fn task(&self) -> Option<&str> {\n        Some(\"mine\")\n    }\n"));
    let shown = String::from_utf8(said.stdout).unwrap();
    assert!(shown.contains("metric `own`: conforms") && said.status.success(), "{shown}");
}

#[test]
fn a_loaded_metric_gives_the_same_bits_as_a_built_in_one() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, &words("plugin new copied --kind metric"));
    let source = std::fs::read_to_string(repository("metrics/src/logit_diff.rs")).unwrap();
    let library = source.replace("\"logit_diff\"", "\"copied\"");
    std::fs::write(folder.join("copied/src/lib.rs"), library).unwrap();
    let plugin = build(folder, "copied");
    for settings in ["--ablation mean", "--ablation corrupt --positions all", "--method eap-ig"] {
        let settings = format!("{settings} --set discovery.examples=64");
        let built_in = scores(folder, &format!("--metric logit_diff {settings}"));
        let plugin = plugin.to_str().unwrap();
        let loaded = scores(folder, &format!("--plugin {plugin} --metric copied {settings}"));
        assert!(built_in == loaded, "{settings}");
    }
}

#[test]
fn what_does_not_fit_is_refused_unopened() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, &words("plugin new mine --kind metric"));
    let plugin = build(folder, "mine");
    let bytes = std::fs::read(&plugin).unwrap();
    let refuses_as = |name: &str, content: &[u8], parts: &[&str]| {
        std::fs::write(folder.join(name), content).unwrap();
        refuses(folder, &["list", "--plugin", name], &[&[name], parts].concat());
    };
    let build_again = "circuit-tuning plugin build";

    // The first digit of the runtime library's hash.
    let key = b"\"runtime\":\"";
    let at = bytes.windows(key.len()).rposition(|window| window == key).unwrap() + key.len();
    let mut other = bytes.clone();
    other[at] = if other[at] == b'0' { b'1' } else { b'0' };
    refuses_as("other", &other, &["was built for another program", "rustc 1.", build_again]);

    refuses_as("short", &bytes[..bytes.len() / 2], &["cut short", build_again]);
    refuses_as("shorter", &bytes[..bytes.len() - 1], &["cut short", build_again]);
    refuses_as("empty", b"", &["is no plugin", build_again]);
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 3] ^= 1;
    refuses_as("damaged", &damaged, &["was damaged", build_again]);

    refuses(folder, &["list", "--plugin", "/bin/true"], &["/bin/true: is no plugin", build_again]);
    refuses(folder, &["list", "--plugin", "absent"], &["absent: No such file"]);

    // The same registrations from another file.
    std::fs::write(folder.join("copy"), &bytes).unwrap();
    let twice = ["list", "--plugin", plugin.to_str().unwrap(), "--plugin", "copy"];
    refuses(folder, &twice, &["`mine` is registered twice", "src/lib.rs"]);
}

#[test]
fn what_does_not_compile_or_register_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, &words("plugin new mine --kind metric"));
    refuses(folder, &words("plugin new mine --kind metric"), &["mine: exists already"]);
    refuses(folder, &words("plugin new Mine --kind metric"), &["`Mine` is no name"]);
    refuses(folder, &words("plugin build absent"), &["absent: No such file"]);
    std::fs::write(folder.join("mine/src/lib.rs"), "pub fn nothing() {}\n").unwrap();
    let plugin = build(folder, "mine");
    refuses(folder, &["list", "--plugin", plugin.to_str().unwrap()], &["registers nothing"]);
    std::fs::write(folder.join("mine/src/lib.rs"), "no rust\n").unwrap();
    // Cargo says first what is wrong.
    let output = program(folder, &words("plugin build mine"));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.lines().last().unwrap().contains("doesn't compile"), "{errors}");
}

#[test]
fn a_plugin_that_panics_is_named_and_the_run_saved() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, &words("plugin new mine --kind selector"));
    let library = folder.join("mine/src/lib.rs");
    let source = std::fs::read_to_string(&library).unwrap();
    // Every selection is asked for once a step: the third panics.
    let counted = source.replace(
        "let owners = circuit.owners();",
        "static CALLS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);\n\
         let calls = CALLS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);\n\
         assert!(calls < 2, \"two were enough\");\n\
         let owners = circuit.owners();",
    );
    assert_ne!(source, counted);
    std::fs::write(&library, counted).unwrap();
    let plugin = build(folder, "mine");
    let plugin = plugin.to_str().unwrap();
    let tune = format!(
        "tune --plugin {plugin} --selector mine --steps 5 --set tuning.rediscover_every=1 --out out"
    );
    refuses(folder, &words(&tune), &["selector `mine` panicked at ", "lib.rs:", "two were enough"]);
    let log = std::fs::read_to_string(folder.join("out/log.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 2);
    assert!(folder.join("out/model/model.safetensors").exists());
    succeeds(folder, &words("eval --model out/model"));
}
