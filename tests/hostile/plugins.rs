//! Plugins that somebody else may have put there.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use crate::command_line::{refuses, words};
use crate::support::skip;

/// Who isn't the one that runs the tests.
const SOMEBODY_ELSE: u32 = 54_321;

fn allow_to_all(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_plugin_that_everybody_may_write_to_is_refused_before_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let plugin = folder.path().join("theirs.so");
    std::fs::write(&plugin, b"whatever").unwrap();
    let line = words("list --plugin theirs.so");
    refuses(folder.path(), &line, &["theirs.so: is no plugin"]);
    allow_to_all(&plugin, 0o666);
    refuses(folder.path(), &line, &["theirs.so: everybody may write to this plugin", "chmod o-w"]);
    allow_to_all(&plugin, 0o644);
    allow_to_all(folder.path(), 0o777);
    refuses(folder.path(), &line, &["theirs.so: everybody may put another file", "chmod o-w"]);
    // In a folder like /tmp nobody replaces the files of others.
    allow_to_all(folder.path(), 0o1777);
    refuses(folder.path(), &line, &["theirs.so: is no plugin"]);
}

#[test]
fn a_plugin_that_somebody_elses_experiment_names_needs_leave() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = folder.path().join("theirs.toml");
    std::fs::write(&experiment, "plugins = [\"theirs.so\"]\n").unwrap();
    std::fs::write(folder.path().join("theirs.so"), b"whatever").unwrap();
    // One's own experiment opens it, and finds that it is none.
    refuses(folder.path(), &words("run theirs.toml"), &["theirs.so: is no plugin"]);
    if let Err(error) = chown(&experiment, Some(SOMEBODY_ELSE), None) {
        skip::<()>(&format!("only root can give a file to somebody else: {error}"));
        return;
    }
    let needs = ["theirs.toml: names plugin", "theirs.so", "isn't yours", "--allow-plugins"];
    refuses(folder.path(), &words("run theirs.toml"), &needs);
    let allowed = words("run theirs.toml --allow-plugins");
    refuses(folder.path(), &allowed, &["theirs.so: is no plugin"]);
}
