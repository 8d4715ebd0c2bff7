//! How much memory there is for this process, and what sizes out of files and settings would take of it, held
//! against it before anything is allocated: an allocation that fails would end the program without a word.

use std::path::Path;

use crate::{Result, refuse};

/// What takes no more than this is never refused, nor is the system asked.
const SMALL: u64 = 64 << 20;

/// The limit where the system doesn't tell how much is free.
const UNKNOWN: u64 = 1 << 40;

/// The product of sizes, the largest number there is where it is more.
pub fn product(sizes: &[usize]) -> u64 {
    sizes.iter().fold(1, |product, &size| product.saturating_mul(size as u64))
}

/// Refuses to begin what takes so many bytes where so many aren't free. `what` is what takes them, with its
/// setting or key; `remedy` says what would be right.
///
/// # Errors
/// With both figures.
pub fn check(what: &str, bytes: u64, remedy: &str) -> Result<()> {
    if bytes <= SMALL {
        return Ok(());
    }
    let free = free().unwrap_or(UNKNOWN);
    if bytes > free {
        refuse!("{what} takes {}, but {} of memory are free; {remedy}", shown(bytes), shown(free));
    }
    Ok(())
}

/// Refuses a graph for whose scores, 8 bytes an edge, there is no memory.
///
/// # Errors
/// With both figures.
pub fn check_graph(origin: &str, writers: u64, readers: u64, key: &str) -> Result<()> {
    check(
        &format!("{origin}: {key}: a graph of {writers} writers and {readers} readers"),
        writers.saturating_mul(readers).saturating_mul(8),
        "give a smaller number",
    )
}

/// Bytes as one reads them.
fn shown(bytes: u64) -> String {
    match bytes {
        u64::MAX => "more than any computer has".to_owned(),
        0..1_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// The bytes that this process can still have, where the system tells: the least of the machine's free
/// memory, what is left of its control groups' limits, and of its own limit on address space.
fn free() -> Option<u64> {
    [of_machine(), of_groups(), of_process()].into_iter().flatten().min()
}

fn of_machine() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    };
    Some((field("MemAvailable:")? + field("SwapFree:").unwrap_or(0)).saturating_mul(1024))
}

/// What is left in the control groups that the process is in, of version 2 and of version 1.
fn of_groups() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let unified = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let root = Path::new("/sys/fs/cgroup");
    let folder = root.join(unified);
    let unified = (folder.ancestors().take_while(|folder| folder.starts_with(root)))
        .filter_map(|folder| left(folder, ["memory.max", "memory.current"], "inactive_file "));
    let first = ["memory.limit_in_bytes", "memory.usage_in_bytes"];
    unified.chain(left(&root.join("memory"), first, "total_inactive_file ")).min()
}

/// What is left of a control group's limit: files that are only cached don't count.
fn left(group: &Path, [limit, used]: [&str; 2], cached: &str) -> Option<u64> {
    let number = |file: &str| -> Option<u64> {
        std::fs::read_to_string(group.join(file)).ok()?.trim().parse().ok()
    };
    let statistics = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cached = statistics.lines().find_map(|line| line.strip_prefix(cached)?.parse().ok());
    let used = number(used)?.saturating_sub(cached.unwrap_or(0));
    Some(number(limit)?.saturating_sub(used))
}

/// What is left of the limit that `ulimit -v` sets.
#[cfg(unix)]
fn of_process() -> Option<u64> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::As).current?;
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split(' ').next()?.parse().ok()?;
    Some(limit.saturating_sub(pages.saturating_mul(rustix::param::page_size() as u64)))
}

#[cfg(not(unix))]
fn of_process() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_product_is_never_less_than_it_should_be(sizes in prop::collection::vec(1usize.., 0..5)) {
            let exact = sizes.iter().try_fold(1u64, |product, &size| product.checked_mul(size as u64));
            prop_assert_eq!(product(&sizes), exact.unwrap_or(u64::MAX));
        }

        #[test]
        fn what_is_refused_is_more_than_is_free(bytes in any::<u64>()) {
            match check("it", bytes, "give less") {
                Ok(()) => prop_assert!(bytes <= UNKNOWN),
                Err(error) => {
                    prop_assert!(bytes > SMALL);
                    let error = error.to_string();
                    prop_assert!(error.contains("are free; give less"), "{}", error);
                }
            }
        }
    }

    #[test]
    fn what_is_left_of_a_group_counts_cached_files_as_free() {
        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(group.path().join(name), text).unwrap();
        let files = ["memory.max", "memory.current"];
        assert_eq!(left(group.path(), files, "inactive_file "), None);
        write("memory.max", "max\n");
        write("memory.current", "700\n");
        assert_eq!(left(group.path(), files, "inactive_file "), None);
        write("memory.max", "1000\n");
        assert_eq!(left(group.path(), files, "inactive_file "), Some(300));
        write("memory.stat", "anon 500\ninactive_file 150\n");
        assert_eq!(left(group.path(), files, "inactive_file "), Some(450));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_machine_says_what_is_free() {
        let free = of_machine().unwrap();
        assert!(free > 1 << 20 && free < 1 << 50, "{free}");
    }
}
