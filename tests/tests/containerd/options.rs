//! Options of the runtime.

use std::fs;

use pouch_tests::containerd::sh;
use pouch_tests::vm_only;

use crate::check;

const MEMORY: &str = "grep MemTotal /proc/meminfo | tr -dc 0-9";

#[test]
fn a_configuration_of_its_own() {
    vm_only!();
    check(|| {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "default_memory_mib = 256").unwrap();
        let path = file.path().to_str().unwrap();
        let kib: u64 = sh(&["--runtime-config-path", path], MEMORY).ok().parse().unwrap();
        assert!((150 << 10..256 << 10).contains(&kib), "{kib}");
        let kib: u64 = sh(&[], MEMORY).ok().parse().unwrap();
        assert!(kib > 512 << 10, "{kib}");
    });
}

#[test]
fn a_configuration_that_cannot_be_used() {
    vm_only!();
    check(|| {
        let missing = sh(&["--runtime-config-path", "/no/such/file"], "true");
        assert!(
            missing.status != 0 && missing.errors().contains("the configuration /no/such/file"),
            "{missing}"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "default_memory_mib = 1").unwrap();
        let wrong = sh(&["--runtime-config-path", file.path().to_str().unwrap()], "true");
        assert!(wrong.status != 0 && wrong.errors().contains("default_memory_mib"), "{wrong}");
    });
}
