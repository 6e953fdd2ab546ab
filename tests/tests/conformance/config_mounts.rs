//! config.md, "Mounts".

use std::fs;

use pouch_tests::{Bundle, Output};
use tempfile::TempDir;

use crate::requirements::{Section, not_pouch, not_runc};

const DOCUMENT: &str = "config.md";

/// A folder of the host with a file in it.
fn volume() -> TempDir {
    let folder = tempfile::Builder::new().prefix("pouch-volume-").tempdir_in("/var/tmp").unwrap();
    fs::write(folder.path().join("file"), "of the host\n").unwrap();
    folder
}

/// config.md, "Mounts": order, destinations and sources.
#[test]
fn mounts() {
    let mut section = Section::new(DOCUMENT, "Mounts");
    let folder = volume();
    fs::create_dir(folder.path().join("c")).unwrap();
    let bundle = Bundle::busybox().sh("ls /a /a/b /a/b/c; ls /relative; cat /bundle");
    fs::write(bundle.path().join("in-bundle"), "of the bundle").unwrap();
    let output = bundle
        .mount("/a", "tmpfs", "tmpfs", &[])
        .mount("/a/b", "none", folder.path(), &["rbind"])
        .mount("/a/b/c", "tmpfs", "tmpfs", &["mode=700"])
        .mount("relative", "none", folder.path(), &["bind"])
        .mount("/bundle", "none", "in-bundle", &["bind"])
        .run();
    let has = |line: &str| assert!(output.text().lines().any(|shown| shown == line), "no {line}: {output}");
    section.must("mounts are made in the listed order", || {
        assert!(output.text().starts_with("/a:\nb\n"), "{output}");
        has("c");
    });
    section
        .must("what has bind or rbind among its options is a bind mount, whatever its type", || has("file"));
    section.must("a destination that is relative is relative to /", || {
        assert!(output.text().matches("file").count() >= 2, "{output}");
    });
    section.must("a bind mount's source that is relative is relative to the bundle", || has("of the bundle"));
    section.must("a source that does not exist is an error", || {
        let bundle = Bundle::busybox().args(["true"]).mount("/x", "none", "/no/such/source", &["bind"]);
        bundle.run().fails_naming(&[]);
    });
}

/// The options of a mount point in /proc/self/mountinfo, and those of its file system.
fn shown(output: &Output, destination: &str) -> String {
    let text = output.text();
    let line = text.lines().find(|line| line.split(' ').nth(4) == Some(destination));
    line.unwrap_or_else(|| panic!("{destination} is not mounted: {output}")).to_owned()
}

/// config.md, "Linux mount options": those that a runtime MUST implement, on a file system of the
/// container's own. The last words of an entry tell what must be seen, or with `!` not be seen.
const OPTIONS: &[(&str, &[&str], &str)] = &[
    ("option async is implemented", &["async"], "!sync"),
    ("option atime is implemented", &["noatime", "atime"], "!noatime"),
    ("option dev is implemented", &["nodev", "dev"], "!nodev"),
    ("option diratime is implemented", &["nodiratime", "diratime"], "!nodiratime"),
    ("option exec is implemented", &["noexec", "exec"], "!noexec"),
    ("option iversion is implemented", &["iversion"], ""),
    ("option lazytime is implemented", &["lazytime"], ""),
    ("option loud is implemented", &["loud"], ""),
    ("option noatime is implemented", &["noatime"], "noatime"),
    ("option nodev is implemented", &["nodev"], "nodev"),
    ("option nodiratime is implemented", &["nodiratime"], "nodiratime"),
    ("option noexec is implemented", &["noexec"], "noexec"),
    ("option noiversion is implemented", &["noiversion"], ""),
    ("option nolazytime is implemented", &["nolazytime"], ""),
    ("option norelatime is implemented", &["norelatime"], ""),
    ("option nostrictatime is implemented", &["nostrictatime"], ""),
    ("option nosuid is implemented", &["nosuid"], "nosuid"),
    ("option private is implemented", &["private"], "!shared:"),
    ("option relatime is implemented", &["relatime"], "relatime"),
    ("option ro is implemented", &["ro"], "ro"),
    ("option rprivate is implemented", &["rprivate"], "!shared:"),
    ("option rslave is implemented", &["rslave"], ""),
    ("option rw is implemented", &["ro", "rw"], "rw"),
    ("option silent is implemented", &["silent"], ""),
    ("option slave is implemented", &["slave"], ""),
    ("option strictatime is implemented", &["strictatime"], "!relatime"),
    ("option suid is implemented", &["nosuid", "suid"], "!nosuid"),
    ("option nosymfollow is implemented (SHOULD)", &["nosymfollow"], "nosymfollow"),
];

/// Whether one of the options of a line of mountinfo is `word`, or begins with it if that ends in a colon.
fn has_option(line: &str, word: &str) -> bool {
    let mut words = line.split([' ', ',']);
    words.any(|option| option == word || (word.ends_with(':') && option.starts_with(word)))
}

fn check_option(line: &str, expected: &str) {
    match expected.strip_prefix('!') {
        Some(absent) => assert!(!has_option(line, absent), "{line}"),
        None => assert!(expected.is_empty() || has_option(line, expected), "{line}"),
    }
}

/// A container with a tmpfs for each entry of a table.
fn tmpfs_of(table: &[(&'static str, &[&str], &str)]) -> Output {
    let bundle = Bundle::busybox().args(["cat", "/proc/self/mountinfo"]);
    let mount = |bundle: Bundle, (index, (_, options, _)): (usize, &(&str, &[&str], &str))| {
        bundle.mount(&format!("/m{index}"), "tmpfs", "tmpfs", options)
    };
    table.iter().enumerate().fold(bundle, mount).run()
}

/// config.md, "Linux mount options".
#[test]
fn options() {
    let mut section = Section::new(DOCUMENT, "Linux mount options");
    let all = tmpfs_of(OPTIONS);
    for (index, entry) in OPTIONS.iter().enumerate() {
        section.must(entry.0, || {
            // One that is refused must not hide the others.
            let line = if all.status == 0 {
                shown(&all, &format!("/m{index}"))
            } else {
                shown(&tmpfs_of(&[*entry]), "/m0")
            };
            check_option(&line, entry.2);
        });
    }
}

/// Those of the options that are a thing of their own.
const SPECIAL: &[(&str, &[&str], &str)] = &[
    ("option defaults is implemented", &["defaults"], "rw"),
    ("option dirsync is implemented", &["dirsync"], "dirsync"),
    ("option sync is implemented", &["sync"], "sync"),
    ("option shared is implemented", &["shared"], "shared:"),
    ("option rshared is implemented", &["rshared"], "shared:"),
    ("option unbindable is implemented", &["unbindable"], "unbindable"),
    ("option runbindable is implemented", &["runbindable"], "unbindable"),
];

/// config.md, "Linux mount options": the options for which a VM makes a difference.
#[test]
fn special_options() {
    let mut section = Section::new(DOCUMENT, "Linux mount options");
    for entry in SPECIAL {
        let unmet: &[_] = match entry.1[0] {
            "defaults" => &[not_runc("runc 1.1.15 hands it to the file system, which refuses it")],
            "sync" | "dirsync" => &[not_pouch("refused by name: libcontainer would leave it out")],
            "shared" | "rshared" => {
                &[not_pouch("refused by name: what is mounted in a guest cannot appear on the host")]
            }
            "unbindable" | "runbindable" => &[not_pouch("refused by name: not done in the guest yet")],
            _ => &[],
        };
        section.must_but(entry.0, unmet, || {
            let output = tmpfs_of(&[*entry]);
            output.ok();
            check_option(&shown(&output, "/m0"), entry.2);
        });
    }
    section.must_but(
        "option remount is implemented",
        &[not_pouch("refused by name: a mount of a container is always a new one")],
        || {
            let bundle = Bundle::busybox().sh("grep ' /m ' /proc/self/mountinfo");
            let bundle =
                bundle.mount("/m", "tmpfs", "tmpfs", &[]).mount("/m", "tmpfs", "tmpfs", &["remount", "ro"]);
            check_option(&bundle.run().ok(), "ro");
        },
    );
    let folder = volume();
    section.must("options bind and ro together make a bind mount that cannot be written", || {
        let bundle = Bundle::busybox().sh("cat /m/file; touch /m/x || echo refused");
        let output = bundle.mount("/m", "none", folder.path(), &["bind", "ro"]).run();
        assert_eq!(output.ok(), "of the host\nrefused");
    });
    section.must("option rbind takes the mounts below along, and option bind does not", || {
        let below = folder.path().join("below");
        fs::create_dir_all(&below).unwrap();
        let target = below.to_str().unwrap();
        pouch_tests::Invocation::of("mount", ["-t", "tmpfs", "tmpfs", target]).run().ok();
        fs::write(below.join("deep"), "").unwrap();
        let bundle = Bundle::busybox().sh("ls /r/below; echo -; ls /b/below");
        let bundle = bundle.mount("/r", "none", folder.path(), &["rbind"]);
        let output = bundle.mount("/b", "none", folder.path(), &["bind"]).run();
        pouch_tests::Invocation::of("umount", [target]).run().ok();
        assert_eq!(output.ok(), "deep\n-");
    });
    let unknown = [not_runc("runc 1.1 does not know it")];
    section.must_but("idmap without a mapping and without a user namespace is an error", &unknown, || {
        let bundle = Bundle::busybox().args(["true"]).mount("/m", "none", folder.path(), &["bind", "idmap"]);
        bundle.run().fails_naming(&[]);
    });
}
