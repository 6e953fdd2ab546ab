//! What dies unexpectedly: the VMM, the sandbox host process, the guest. Whatever it is, the rest
//! ends, says why, and leaves nothing.

use std::process::Stdio;

use pouch_tests::invocation::{code, wait};
use pouch_tests::processes::{descendants, runs, sigkill, vmm_of};
use pouch_tests::{Bundle, Container, HANG, Invocation, Leftovers, eventually, long, vm_only};
use serde_json::json;

/// A container that may do everything in its VM.
fn privileged(script: &str) -> Bundle {
    Bundle::debian()
        .sh(script)
        .capable(&["CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_DAC_OVERRIDE", "CAP_SYS_RAWIO"])
        .set("/linux/readonlyPaths", json!([]))
        .set("/linux/maskedPaths", json!([]))
}

fn sleeper() -> Container {
    Bundle::debian().args(["sleep", "1000"]).create()
}

/// A picture of the host on which pouch-vm has run before.
fn picture() -> Leftovers {
    Bundle::busybox().args(["true"]).run().ok();
    Leftovers::picture()
}

/// Checks that the container is stopped, says so, and can be deleted without force.
#[track_caller]
fn stopped_and_deleted(container: &Container, before: &Leftovers) {
    container.await_status("stopped");
    container.exec(&["true"]).fails_naming(&["stopped"]);
    container.delete();
    before.check();
}

#[test]
fn nothing_left_when_the_vmm_is_killed_while_running() {
    vm_only!();
    let before = picture();
    let container = sleeper();
    container.start();
    let pid = container.pid();
    sigkill(vmm_of(pid)[0]);
    assert_eq!(container.reap(pid), 137, "as if the container had been killed");
    stopped_and_deleted(&container, &before);
}

#[test]
fn nothing_left_of_a_guest_that_does_not_answer() {
    vm_only!();
    let before = picture();
    let container = sleeper();
    container.start();
    let pid = container.pid();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(vmm_of(pid)[0]), nix::sys::signal::Signal::SIGSTOP)
        .unwrap();
    container.kill("KILL");
    assert_eq!(container.reap(pid), 137);
    stopped_and_deleted(&container, &before);
}

#[test]
fn nothing_left_when_the_vmm_is_killed_before_start() {
    vm_only!();
    let before = picture();
    let container = sleeper();
    let pid = container.pid();
    let vmm = *vmm_of(pid).last().expect("a VMM below the container's process");
    sigkill(vmm);
    assert_eq!(container.reap(pid), 137);
    container.operation(&["start"]).fails_naming(&["stopped"]);
    stopped_and_deleted(&container, &before);
}

#[test]
fn run_says_that_the_vmm_was_killed() {
    vm_only!();
    let bundle = Bundle::debian().sh("echo ready; sleep 1000");
    let errors = bundle.path().join("errors");
    let mut command = bundle.run_invocation(&[]).into_command();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(std::fs::File::create(&errors).unwrap());
    let mut child = command.spawn().unwrap();
    let mut first = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    sigkill(vmm_of(child.id() as i32)[0]);
    assert_eq!(code(wait(&mut child, "run", HANG)), 137);
    let text = std::fs::read_to_string(&errors).unwrap();
    assert!(text.contains("VMM"), "{text}");
}

#[test]
fn nothing_left_when_the_sandbox_host_process_is_killed() {
    vm_only!();
    for started in [false, true] {
        let before = picture();
        let container = sleeper();
        if started {
            container.start();
        }
        let pid = container.pid();
        let below = descendants(pid);
        sigkill(pid);
        assert_eq!(container.reap(pid), 137);
        eventually("the VMM has ended too", || !below.iter().any(|pid| runs(*pid)));
        stopped_and_deleted(&container, &before);
    }
}

/// Kills whatever is there at a random point of `create`.
#[test]
fn nothing_left_when_create_is_killed() {
    vm_only!();
    let before = picture();
    // Fractions of the time that `create` takes here.
    let began = std::time::Instant::now();
    sleeper().delete_by_force();
    let usual = began.elapsed();
    for part in (0..8).step_by(if long() { 1 } else { 3 }) {
        for victim in ["vmm", "host", "create"] {
            let bundle = Bundle::debian().args(["sleep", "1000"]);
            bundle.write();
            let id = format!("killed-{victim}-{part}");
            let arguments = ["create", "--bundle", bundle.path().to_str().unwrap(), &id];
            let mut command = Invocation::new(arguments).into_command();
            let mut child =
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let pid = child.id() as i32;
            std::thread::sleep(usual * part / 10);
            let victims = match victim {
                "vmm" => vmm_of(pid),
                "host" => descendants(pid).into_iter().take(1).collect(),
                _ => vec![pid],
            };
            victims.into_iter().take(1).filter(|pid| runs(*pid)).for_each(sigkill);
            let status = code(wait(&mut child, "create", HANG));
            let state = Invocation::new(["state", &id]).run();
            if status != 0 && victim != "create" {
                state.fails_naming(&["does not exist"]);
            }
            Invocation::new(["delete", "--force", &id]).run().ok();
            drop(bundle);
            before.check();
        }
    }
}

#[test]
fn nothing_left_when_something_is_killed_at_delete() {
    vm_only!();
    let before = picture();
    for victim in ["vmm", "host"] {
        let container = sleeper();
        container.start();
        let pid = container.pid();
        let target = if victim == "vmm" { vmm_of(pid)[0] } else { pid };
        let mut command = container.invocation(&["delete", "--force", &container.id]).into_command();
        let mut child = command.stdin(Stdio::null()).spawn().unwrap();
        if runs(target) {
            sigkill(target);
        }
        assert_eq!(code(wait(&mut child, "delete", HANG)), 0, "{victim}");
        container.reap(pid);
        before.check();
    }
}

#[test]
fn nothing_left_when_delete_itself_is_killed() {
    vm_only!();
    let before = picture();
    let container = sleeper();
    container.start();
    let pid = container.pid();
    let mut command = container.invocation(&["delete", "--force", &container.id]).into_command();
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    child.kill().unwrap();
    wait(&mut child, "delete", HANG);
    container.delete_by_force();
    container.reap(pid);
    before.check();
}

#[test]
fn nothing_left_of_a_guest_that_panics() {
    vm_only!();
    let before = picture();
    let bundle = privileged("echo c >/proc/sysrq-trigger; sleep 1000");
    let output = bundle.run();
    output.fails(137);
    assert!(output.errors().contains("panic"), "{output}");
    drop(bundle);
    before.check();
}

/// Resets and power-offs are not panics, and are told apart.
#[test]
fn nothing_left_of_a_guest_that_resets() {
    vm_only!();
    let before = picture();
    for key in ["b", "o"] {
        let bundle = privileged(&format!("echo {key} >/proc/sysrq-trigger; sleep 1000"));
        let output = bundle.run();
        output.fails(137);
        assert!(!output.errors().is_empty() && !output.errors().contains("panic"), "{output}");
        drop(bundle);
        before.check();
    }
}

#[test]
fn nothing_left_of_a_guest_out_of_memory() {
    vm_only!();
    let before = picture();
    const HOG: &str = "x = []\nwhile True: x.append(b'x' * (1 << 20))";
    let bundle = Bundle::new("python")
        .args(["python3", "-c", HOG])
        .set("/linux/resources/memory", json!({"limit": 96 << 20}));
    let output = bundle.run();
    output.fails(137);
    drop(bundle);
    before.check();
}

#[test]
fn a_child_out_of_memory_does_not_end_the_container() {
    vm_only!();
    let hog = "python3 -c 'x = []\nwhile True: x.append(b\"x\" * (1 << 20))'; echo $?";
    let bundle = Bundle::new("python").sh(hog).set("/linux/resources/memory", json!({"limit": 96 << 20}));
    let output = bundle.run();
    assert!(output.text().ends_with("137"), "{output}");
}

#[test]
fn a_full_tmpfs_in_the_guest_is_the_containers_own_problem() {
    vm_only!();
    let bundle = Bundle::debian()
        .sh("head -c 1G /dev/zero >/dev/shm/x; echo status $?; rm /dev/shm/x; echo fine >/dev/shm/y && cat /dev/shm/y")
        .set("/linux/resources/memory", json!({"limit": 128 << 20}));
    let output = bundle.run();
    assert!(output.ok().ends_with("fine"), "{output}");
}
