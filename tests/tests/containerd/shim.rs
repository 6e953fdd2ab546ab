//! The shim's own command line, which containerd uses.

use pouch_tests::{Invocation, vm_only};

const SHIM: &str = "containerd-shim-pouch-vm-v2";

#[test]
fn version() {
    vm_only!();
    for flag in ["-v", "-version"] {
        let output = Invocation::of(SHIM, [flag]).run().ok();
        assert!(output.contains("containerd-shim-pouch-vm-v2") && output.contains("Version:"), "{output}");
    }
}

#[test]
fn information() {
    vm_only!();
    let output = Invocation::of(SHIM, ["-info"]).run();
    let text = output.ok();
    for expected in ["io.containerd.pouch-vm.v2", "runtime-spec/1/features/Features", "\"mountOptions\""] {
        assert!(text.contains(expected), "{expected}: {output}");
    }
}

#[test]
fn flags_that_are_missing_or_unknown() {
    vm_only!();
    for (arguments, expected) in [
        (&["start"][..], "-namespace"),
        (&["-namespace", "n", "start"], "-id"),
        (&["-namespace", "n", "-id", "../x", "delete"], "../x"),
        (&["-namespace", "../n", "-id", "x", "delete"], "-namespace"),
        (&["-no-such-flag"], "no-such-flag"),
    ] {
        let output = Invocation::of(SHIM, arguments).run();
        let errors = output.errors();
        assert!(output.status == 1 && errors.contains("error: ") && errors.contains(expected), "{output}");
    }
}

#[test]
fn delete_of_what_is_not_there() {
    vm_only!();
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().to_str().unwrap();
    let arguments = ["-namespace", "n", "-id", "no-such", "-bundle", bundle, "delete"];
    assert_eq!(Invocation::of(SHIM, arguments).run().status, 0);
}
