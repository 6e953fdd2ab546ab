//! Many containers, at once and one after the other.

use pouch_tests::{Bundle, Container, Leftovers, has_vm, long, processes};

fn sleeper() -> Container {
    Bundle::debian().args(["sleep", "1000"]).capable(&["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]).start()
}

#[test]
fn four_at_once_are_apart_alone() {
    let containers: Vec<Container> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(sleeper)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (number, container) in containers.iter().enumerate() {
        container.sh(&format!("hostname number-{number}; echo {number} >/tmp/number"));
    }
    let mut boots = std::collections::BTreeSet::new();
    for (number, container) in containers.iter().enumerate() {
        assert_eq!(container.sh("hostname; cat /tmp/number"), format!("number-{number}\n{number}"));
        boots.insert(container.sh("cat /proc/sys/kernel/random/boot_id"));
    }
    assert_eq!(boots.len(), if has_vm() { 4 } else { 1 }, "each has a VM of its own");
}

#[test]
fn nothing_left_of_many_rounds() {
    let rounds = if long() { 50 } else { 15 };
    // Memory that the rounds may cost: the page cache and slabs of a host move by themselves.
    const ALLOWED_KIB: u64 = 64 << 10;
    let round = |number: usize| {
        let container = Bundle::busybox().sh("echo round; exit 3").create();
        let pid = container.pid();
        container.start();
        assert_eq!(container.reap(pid), 3, "round {number}");
        assert_eq!(container.stdout(), "round\n");
        container.delete();
    };
    // The first round makes what stays by intent, such as the folder of all states.
    round(0);
    let before = Leftovers::picture();
    let memory = processes::settled_kib();
    (1..=rounds).for_each(round);
    before.check();
    let now = processes::settled_kib();
    assert!(now + ALLOWED_KIB > memory, "{memory} KiB were available, now {now} KiB");
}

#[test]
fn nothing_left_of_run() {
    Bundle::debian().args(["true"]).run().ok();
    let bundle = Bundle::debian().sh("echo x; exit 1");
    let before = Leftovers::picture();
    bundle.run().fails(1);
    before.check();
}

#[test]
fn nothing_left_of_a_forced_delete_in_any_state() {
    sleeper().delete_by_force();
    for state in ["created", "running", "paused", "stopped"] {
        let bundle = Bundle::debian().args(["sleep", if state == "stopped" { "0" } else { "1000" }]);
        let before = Leftovers::picture();
        let container = bundle.create();
        let pid = container.pid();
        if state != "created" {
            container.start();
        }
        if state == "paused" {
            container.operation(&["pause"]).ok();
        }
        container.await_status(state);
        container.delete_by_force();
        container.reap(pid);
        before.check();
    }
}
