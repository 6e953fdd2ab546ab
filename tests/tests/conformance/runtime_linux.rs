//! runtime-linux.md.

use pouch_tests::Bundle;

use crate::requirements::Section;

const DOCUMENT: &str = "runtime-linux.md";

/// runtime-linux.md, "Dev symbolic links" and "File descriptors".
#[test]
fn links_and_descriptors() {
    let script = "for name in fd stdin stdout stderr; do readlink /dev/$name; done; exec ls /proc/self/fd";
    let output = Bundle::busybox().sh(script).run();
    let text = output.ok();
    let lines: Vec<&str> = text.lines().collect();
    let mut section = Section::new(DOCUMENT, "Dev symbolic links");
    section.must("/dev/fd leads to /proc/self/fd", || assert_eq!(lines[0], "/proc/self/fd"));
    section.must("/dev/stdin leads to /proc/self/fd/0", || assert_eq!(lines[1], "/proc/self/fd/0"));
    section.must("/dev/stdout leads to /proc/self/fd/1", || assert_eq!(lines[2], "/proc/self/fd/1"));
    section.must("/dev/stderr leads to /proc/self/fd/2", || assert_eq!(lines[3], "/proc/self/fd/2"));
    let mut section = Section::new(DOCUMENT, "File descriptors");
    section.must("only the standard streams are open", || {
        // The fourth is the folder that ls reads.
        assert_eq!(lines[4..], ["0", "1", "2", "3"]);
    });
}
