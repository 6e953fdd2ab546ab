//! A guest that has been taken over, and the VMM with it: they answer the host with what they like.
//!
//! This program is the tests, one for each attack ([`attacks`]), and it is the VMM that the real host side starts for
//! them ([`vmm`]). That VMM has no guest: it plays the agent itself ([`agent`]), as far as a container's life needs
//! it, and attacks at one point. Whatever it does, every operation of the command line must end, with a text that is fit
//! for a terminal, in bounded memory, and nothing may be left of the container.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this is test code, which fails by panicking")]

mod agent;
mod attacks;
mod vmm;

use std::fs;
use std::path::Path;

use attacks::{Act, Attack, Point};
use pouch_tests::bundle::unique_id;
use pouch_tests::{Bundle, Invocation, Leftovers, Output, has_vm};
use pouch_vmm_api::inherited::Inherited;
use serde_json::json;

/// The most memory that a host process may have had, in KiB. A message of 4 MiB may become some hundred MiB when it is
/// decoded.
const PEAK: u64 = 512 << 10;
/// How the name of an attack is told to the VMM: as a word of the kernel's command line.
pub const WORD: &str = "attack=";

fn main() {
    // SAFETY: nothing in this process owns a descriptor yet.
    let mut inherited = unsafe { Inherited::take() }.unwrap();
    let arguments: Vec<String> = std::env::args().collect();
    let after = |name: &str| {
        let place = arguments.iter().position(|argument| argument == name)?;
        arguments.get(place + 1)
    };
    let number = |name: &str| after(name)?.parse().ok();
    if let (Some(config), Some(control)) = (number("--config-fd"), number("--control-fd")) {
        return vmm::run(&mut inherited, config, control);
    }
    // What nextest asks of a test program.
    let asked = |option: &str| arguments.iter().any(|argument| argument == option);
    let all = attacks::all();
    match (asked("--list"), asked("--ignored"), after("--exact")) {
        (true, false, _) => all.iter().for_each(|attack| println!("{}: test", attack.name)),
        (true, true, _) => {}
        (false, _, Some(name)) => test(all.iter().find(|attack| attack.name == *name).unwrap()),
        (false, _, None) => all.iter().for_each(test),
    }
}

fn test(attack: &Attack) {
    if !has_vm() {
        return;
    }
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let config = folder.path().join("config.toml");
    let (program, word) = (std::env::current_exe().unwrap(), format!("{WORD}{}", attack.name));
    fs::write(&config, format!("vmm = {program:?}\nkernel_arguments = [{word:?}]\n")).unwrap();
    // SAFETY: this process has one thread.
    unsafe { std::env::set_var("POUCH_VM_CONFIG", &config) };
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    let before = fs::read_dir("/").unwrap().count();
    let picture = Leftovers::of_containers();
    let bundle =
        Bundle::without_root().set("/root", json!({"path": root, "readonly": false})).args(["sleep", "9"]);
    bundle.write();
    life(attack, &bundle);
    picture.check();
    assert_eq!(fs::read_dir("/").unwrap().count(), before, "something was made on the host");
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0, "something was made in the container's root");
}

/// A container's life, in which all calls to the agent are made.
fn life(attack: &Attack, bundle: &Bundle) {
    let id = unique_id();
    let directory = Path::new("/run/pouch-vm").join(&id);
    let operation = |arguments: &[&str]| {
        let output = Invocation::new(arguments).leaves_something_behind().run();
        // The streams of these are those of a process in the container.
        if !matches!((&attack.act, arguments[0]), (Act::Stream(_), "create" | "exec")) {
            fit_for_a_terminal(&output);
        }
        output
    };
    let path = bundle.path().to_str().unwrap();
    let created = operation(&["create", "--bundle", path, &id]);
    if attack.at != Point::Create {
        created.ok();
    }
    let host = fs::read_to_string(directory.join("state.json")).map(|text| host_process(&text));
    operation(&["start", &id]);
    operation(&["exec", &id, "true"]);
    for others in [&["ps", &id][..], &["events", "--stats", &id], &["pause", &id], &["resume", &id]] {
        operation(others);
    }
    operation(&["update", "--pids-limit", "20", &id]);
    operation(&["list"]);
    operation(&["state", &id]);
    operation(&["kill", &id, "TERM"]);
    if let Ok(host) = host {
        let peak = peak(host);
        assert!(peak < PEAK, "the host process had {peak} KiB");
    }
    let log = fs::read_to_string(directory.join("host.log")).unwrap_or_default();
    assert!(!log.contains("panicked at"), "{log}");
    operation(&["delete", "--force", &id]).ok();
    assert!(!directory.exists());
}

fn host_process(state: &str) -> i32 {
    let state: serde_json::Value = serde_json::from_str(state).unwrap();
    i32::try_from(state["host"]["pid"].as_i64().unwrap()).unwrap()
}

/// The most memory that a process has had, in KiB; 0 if it has ended.
fn peak(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap_or(0)
}

/// What the guest said must not control the terminal of who reads it, nor fill it.
#[track_caller]
fn fit_for_a_terminal(output: &Output) {
    for text in [output.text(), output.errors()] {
        let bad: Vec<char> = text.chars().filter(|c| c.is_control() && !['\n', '\t'].contains(c)).collect();
        assert!(bad.is_empty(), "control characters {bad:?} in {text:?}");
        assert!(!text.contains("panicked at"), "{text}");
    }
    assert!(output.errors().len() < 16 * 1024, "an error of {} bytes", output.errors().len());
}
