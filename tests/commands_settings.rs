//! How settings are given and found: flags, `--set`, what `list settings` and `--help` show.

use crate::command_line::refuses;

#[test]
fn the_old_key_report_is_refused_by_its_new_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("old.toml"), "report = [{ name = \"accuracy\" }]").unwrap();
    refuses(folder.path(), &["run", "old.toml"], &["old.toml", "`report`", "`measure`"]);
}
