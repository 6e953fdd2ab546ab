//! What a VMM, and a sandbox host process, can do that the guest has taken over.
//!
//! This program is the tests, and a VMM that the real host side starts with all that it gives a VMM. That VMM
//! runs the real code up to the guest and beside it, and then tries one attack after the other ([`attack`]). The program
//! is a runtime too, whose sandbox host process does the same ([`host`]). What came of the attacks are the tables in
//! docs/security.md.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this is test code, which fails by panicking")]

mod attack;
mod host;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use pouch_shim::host::launch::{self, HOST_COMMAND};
use pouch_tests::bundle::{image_file, unique_id};
use pouch_tests::{Bundle, Container, Invocation, eventually_every, has_vm};
use pouch_vmm::process::Start;
use pouch_vmm_api::inherited::Inherited;
use serde_json::json;

const VMM: &str = "a_vmm_that_is_taken_over_gets_no_further";
const HOST: &str = "a_host_process_that_is_taken_over_gets_no_further";
/// What the documentation has around the table.
const DOCUMENT: &str = include_str!("../../../docs/security.md");

fn main() {
    // SAFETY: nothing in this process owns a descriptor yet.
    let inherited = unsafe { Inherited::take() }.unwrap();
    let arguments: Vec<String> = std::env::args().collect();
    let number = |name: &str| {
        let place = arguments.iter().position(|argument| argument == name)?;
        arguments.get(place + 1)?.parse().ok()
    };
    if let (Some(config), Some(control)) = (number("--config-fd"), number("--control-fd")) {
        let start = Start { inherited, config, control, filter: true };
        let reason = start.run(|_| attack::start()).unwrap();
        std::process::exit(reason.status());
    }
    if arguments[0] == host::PROGRAM || arguments[0].ends_with(&format!("/{}", host::PROGRAM)) {
        std::process::exit(runtime(inherited, &arguments));
    }
    // What nextest asks of a test program.
    let asked = |option: &str| arguments.iter().any(|argument| argument == option);
    match (asked("--list"), asked("--ignored")) {
        (true, false) => println!("{VMM}: test\n{HOST}: test"),
        (true, true) => {}
        _ if asked(HOST) => test_host(),
        _ => test(),
    }
}

/// The runtime, whose sandbox host process attacks.
fn runtime(mut inherited: Inherited, arguments: &[String]) -> i32 {
    let number = |index: usize| arguments[index].parse().unwrap();
    if arguments[1] == HOST_COMMAND {
        return launch::host_main(&mut inherited, number(2), number(3), host::start);
    }
    pouch_shim::cli::main().into()
}

fn test_host() {
    if !has_vm() {
        return;
    }
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let (config, program) = (folder.path().join("config.toml"), folder.path().join(host::PROGRAM));
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let installed = Path::new("/usr/local");
    let (vmm, share) = (installed.join("libexec/pouch-vm/pouch-vmm"), installed.join("share/pouch-vm"));
    let (kernel, guest_root) = (share.join("vmlinux"), share.join("guest-root.erofs"));
    fs::write(&config, format!("vmm = {vmm:?}\nkernel = {kernel:?}\nguest_root = {guest_root:?}\n")).unwrap();
    // SAFETY: this process has one thread.
    unsafe {
        std::env::set_var("POUCH_VM_CONFIG", &config);
        std::env::set_var("POUCH_RUNTIME", &program);
    }
    let container = Container::create(Bundle::debian().args(["sleep", "100000"]), &[]);
    container.start();
    let log = Path::new("/run/pouch-vm").join(&container.id).join("host.log");
    let mut text = String::new();
    eventually_every(Duration::from_millis(500), "all attacks were tried", || {
        text = fs::read_to_string(&log).unwrap();
        text.contains(host::END) || text.contains("panicked")
    });
    println!("{text}");
    let table: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
    assert!(table.len() > 30, "not all was tried");
    // Nothing that was tried ended the host process or its guest.
    assert_eq!(container.sh("echo alive").trim(), "alive");
    compare(&table);
}

/// Compares a table with that of the documentation.
fn compare(table: &[&str]) {
    let documented = DOCUMENT.lines().skip_while(|line| *line != table[0]);
    let documented: Vec<&str> = documented.take_while(|line| line.starts_with('|')).collect();
    assert_eq!(table, documented, "the table in docs/security.md is another");
}

fn ip(arguments: &str) {
    Invocation::of("ip", arguments.split(' ')).run().ok();
}

/// A network namespace with one interface; gone when it is dropped.
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        let name = unique_id();
        ip(&format!("netns add {name}"));
        ip(&format!("link add to-{} type veth peer name eth0 netns {name}", std::process::id()));
        ip(&format!("-n {name} addr add 10.77.99.2/24 dev eth0"));
        ip(&format!("-n {name} link set eth0 up"));
        Namespace(name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&format!("netns del {}", self.0));
    }
}

fn test() {
    if !has_vm() {
        return;
    }
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let config = folder.path().join("config.toml");
    let program = std::env::current_exe().unwrap();
    fs::write(&config, format!("vmm = {program:?}\n")).unwrap();
    let volume = folder.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::copy(&program, volume.join("program")).unwrap();
    let namespace = Namespace::new();
    // All that a VM can have: a disk that is not to be written, shared directories, one of them read-only, and an
    // interface, which vhost-net serves.
    let image = image_file("debian", "rootfs.ext4");
    let state = || {
        let metadata = fs::metadata(&image).unwrap();
        (metadata.modified().unwrap(), metadata.mode(), metadata.uid())
    };
    let before = state();
    let bundle = Bundle::without_root()
        .set("/root", json!({"path": image, "readonly": true}))
        .args(["sleep", "100000"])
        .mount("/tmp", "bind", &volume, &["rbind"])
        .mount("/mnt", "bind", Path::new("/usr/share"), &["rbind", "ro"]);
    let mut namespaces = bundle.spec["linux"]["namespaces"].clone();
    namespaces.as_array_mut().unwrap().retain(|namespace| namespace["type"] != "network");
    let path = format!("/run/netns/{}", namespace.0);
    let bundle = bundle
        .set("/linux/namespaces", namespaces)
        .push("/linux/namespaces", json!({"type": "network", "path": path}));
    // SAFETY: this process has one thread.
    unsafe { std::env::set_var("POUCH_VM_CONFIG", &config) };
    let container = Container::create(bundle, &[]);
    container.start();
    let log = Path::new("/run/pouch-vm").join(&container.id).join("vmm.log");
    let mut text = String::new();
    eventually_every(Duration::from_millis(500), "all attacks were tried", || {
        text = fs::read_to_string(&log).unwrap();
        text.contains(attack::END) || text.contains("panicked")
    });
    println!("{text}");
    let table: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
    assert!(table.len() > 20, "not all was tried");
    // Guest and VMM run on: nothing that was tried ended them.
    assert_eq!(container.sh("echo alive").trim(), "alive");
    drop(container);
    assert_eq!(state(), before, "the disk was changed");
    assert_eq!(fs::read_dir(&volume).unwrap().count(), 1, "a file was made");
    compare(&table);
}
