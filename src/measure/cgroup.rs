//! Memory limits of the control groups that this process lies in, of version 1 and 2 and of any depth: the
//! tightest limit of a group and of all groups above it counts, whichever of them carries it.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// Groups above one another that are looked at; the kernel nests some dozen.
const DEEPEST: usize = 256;
/// Limits above this mean none: version 1 writes the largest number of pages for it.
const UNLIMITED: u64 = 1 << 60;

/// What the groups leave to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GroupMemory {
    /// The tightest limit, in bytes.
    pub(super) limit: u64,
    /// The least that any of the groups has left under its limit, in bytes; cached pages of files count as
    /// left, for the kernel drops them first.
    pub(super) left: u64,
}

/// Files of one version of control groups.
struct Files {
    /// Type of its file system.
    kind: &'static str,
    /// Limits; the tightest counts.
    limits: &'static [&'static str],
    usage: &'static str,
    /// In `memory.stat`: bytes of files that nobody has used lately.
    inactive: &'static str,
}

const VERSION_2: Files = Files {
    kind: "cgroup2",
    // Above `memory.high` a process is slowed down until it is below again.
    limits: &["memory.max", "memory.high"],
    usage: "memory.current",
    inactive: "inactive_file",
};

const VERSION_1: Files = Files {
    kind: "cgroup",
    limits: &["memory.limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    inactive: "total_inactive_file",
};

/// The limits of this process, or `None` where there are none.
pub(super) fn memory() -> Option<GroupMemory> {
    let read = |name: &str| fs::read_to_string(name).unwrap_or_default();
    memory_of(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"))
}

/// The same from what `/proc/self/cgroup` and `/proc/self/mountinfo` say.
fn memory_of(groups: &str, mounts: &str) -> Option<GroupMemory> {
    let (mut limit, mut left) = (u64::MAX, u64::MAX);
    for version in [&VERSION_2, &VERSION_1] {
        let Some(path) = group_path(groups, version) else { continue };
        for mount in mounts.lines().filter_map(|line| Mount::parse(line, version)) {
            for folder in mount.folders(path) {
                let Some(own) = limit_of(&folder, version) else { continue };
                limit = limit.min(own);
                left = left.min(own.saturating_sub(used_by(&folder, version)));
            }
        }
    }
    (limit < UNLIMITED).then_some(GroupMemory { limit, left })
}

/// Path of the process's group in the hierarchy that limits memory.
fn group_path<'a>(groups: &'a str, version: &Files) -> Option<&'a Path> {
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let is_ours = if version.kind == VERSION_2.kind {
            number == "0" && controllers.is_empty()
        } else {
            controllers.split(',').any(|c| c == "memory")
        };
        is_ours.then_some(Path::new(path))
    })
}

/// A place where a hierarchy is mounted.
struct Mount {
    /// Group that its root shows.
    root: PathBuf,
    at: PathBuf,
}

impl Mount {
    /// A line of `mountinfo`, when it mounts groups of this version that limit memory.
    fn parse(line: &str, version: &Files) -> Option<Self> {
        let (place, system) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, at) = (place.next()?, place.next()?);
        let mut system = system.split(' ');
        let (kind, options) = (system.next()?, system.nth(1)?);
        let limits = version.kind == VERSION_2.kind || options.split(',').any(|o| o == "memory");
        (kind == version.kind && limits).then(|| Self { root: unescaped(root), at: unescaped(at) })
    }

    /// The folders of a group and of those above it, up to the root of the mount. A group outside of what
    /// the mount shows, as in some containers, is that root.
    fn folders(&self, group: &Path) -> Vec<PathBuf> {
        let below = group.strip_prefix(&self.root).unwrap_or_else(|_| Path::new(""));
        let names = below.components().filter(|part| matches!(part, Component::Normal(_)));
        let mut folders = vec![self.at.clone()];
        for name in names.take(DEEPEST) {
            let next = folders.last().unwrap_or(&self.at).join(name);
            folders.push(next);
        }
        folders
    }
}

/// `mountinfo` writes blanks and backslashes as three octal digits.
fn unescaped(text: &str) -> PathBuf {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out += &rest[..at];
        let code = rest.get(at + 1..at + 4).and_then(|d| u8::from_str_radix(d, 8).ok());
        let (character, length) = code.map_or(('\\', 1), |code| (char::from(code), 4));
        out.push(character);
        rest = &rest[at + length..];
    }
    (out + rest).into()
}

/// The tightest limit of one group.
fn limit_of(folder: &Path, version: &Files) -> Option<u64> {
    let limits = version.limits.iter().filter_map(|name| number(&folder.join(name)));
    limits.min().filter(|limit| *limit < UNLIMITED)
}

/// What one group uses and cannot give back at once.
fn used_by(folder: &Path, version: &Files) -> u64 {
    let usage = number(&folder.join(version.usage)).unwrap_or(0);
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let inactive = stat.lines().find_map(|line| {
        line.strip_prefix(version.inactive)?.strip_prefix(' ')?.trim().parse::<u64>().ok()
    });
    usage.saturating_sub(inactive.unwrap_or(0))
}

/// A number in a file; `max` and a missing file are none.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn limited(limit: u64, left: u64) -> GroupMemory {
        GroupMemory { limit, left }
    }

    /// A hierarchy of groups in a folder.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(&self, group: &str, file: &str, content: &str) {
            let folder = self.0.path().join(group);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(file), content).unwrap();
        }

        /// A line of `mountinfo` that mounts the groups below `root`.
        fn mount(&self, root: &str, kind: &str, options: &str) -> String {
            let at = self.0.path().display();
            format!("35 31 0:32 {root} {at} rw,relatime shared:9 - {kind} {kind} rw,{options}\n")
        }
    }

    #[test]
    fn the_tightest_limit_of_any_depth_counts_in_both_versions() {
        for (version, limit, usage, none, inactive) in [
            (&VERSION_2, "memory.max", "memory.current", "max", "inactive_file"),
            (
                &VERSION_1,
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "9223372036854771712",
                "total_inactive_file",
            ),
        ] {
            let groups = "12:cpu,cpuacct:/x\n4:memory:/a/b/c/d\n0::/a/b/c/d\n";
            for tight in ["", "a", "a/b", "a/b/c", "a/b/c/d"] {
                let tree = Tree::new();
                for group in ["", "a", "a/b", "a/b/c", "a/b/c/d"] {
                    tree.write(group, limit, &format!("{none}\n"));
                    tree.write(group, usage, &format!("{}\n", 3 * GIB));
                    tree.write(group, "memory.stat", &format!("anon 1\n{inactive} {GIB}\n"));
                }
                let mounts = tree.mount("/", version.kind, "memory");
                assert_eq!(memory_of(groups, &mounts), None, "no limit is none");
                tree.write(tight, limit, &(8 * GIB).to_string());
                assert_eq!(
                    memory_of(groups, &mounts),
                    Some(limited(8 * GIB, 6 * GIB)),
                    "{tight:?}"
                );
                // A looser limit further down does not hide it, and one that is nearly used up counts.
                tree.write("a/b/c/d", limit, &(9 * GIB).to_string());
                tree.write("a/b/c/d", usage, &(9 * GIB).to_string());
                let expected = if tight == "a/b/c/d" { 9 } else { 8 };
                assert_eq!(
                    memory_of(groups, &mounts),
                    Some(limited(expected * GIB, GIB)),
                    "{tight:?}"
                );
            }
        }
    }

    #[test]
    fn a_container_sees_its_own_group_as_the_root_of_the_mount() {
        let tree = Tree::new();
        tree.write("", "memory.limit_in_bytes", &(2 * GIB).to_string());
        tree.write("", "memory.usage_in_bytes", &GIB.to_string());
        tree.write("inner", "memory.limit_in_bytes", &GIB.to_string());
        let mounts = tree.mount("/docker/5f", "cgroup", "memory");
        assert_eq!(memory_of("4:memory:/docker/5f\n", &mounts), Some(limited(2 * GIB, GIB)));
        assert_eq!(memory_of("4:memory:/docker/5f/inner\n", &mounts), Some(limited(GIB, GIB)));
        // A name space shows another path than the mount: the mount is what can be read.
        assert_eq!(memory_of("4:memory:/\n", &mounts), Some(limited(2 * GIB, GIB)));
        assert_eq!(memory_of("4:memory:/../5f\n", &mounts), Some(limited(2 * GIB, GIB)));
    }

    #[test]
    fn a_soft_limit_counts_and_other_hierarchies_do_not() {
        let tree = Tree::new();
        tree.write("", "memory.max", "max");
        tree.write("", "memory.high", &GIB.to_string());
        tree.write("", "memory.limit_in_bytes", &GIB.to_string());
        let second = tree.mount("/", "cgroup2", "nsdelegate");
        assert_eq!(memory_of("0::/\n", &second), Some(limited(GIB, GIB)));
        assert_eq!(memory_of("4:memory:/\n", &tree.mount("/", "cgroup", "cpu")), None);
        assert_eq!(memory_of("4:memory:/\n", &second), None);
        assert_eq!(memory_of("", ""), None);
        assert_eq!(memory_of("x\n0::\n", "a - b\n"), None);
        assert_eq!(unescaped(r"/a\040b\134"), Path::new(r"/a b\"));
    }
}
