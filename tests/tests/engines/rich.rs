//! Rich containers: an init with its services as the process of an engine's container.

use std::time::Duration;

use pouch_tests::engine::Engine;
use pouch_tests::{engine_tests, eventually_every, vm_only};

engine_tests! {
    both_long: an_init_with_its_services;
}

fn an_init_with_its_services(engine: Engine) {
    // runc gives a container no cgroups of its own to write with this right alone.
    vm_only!();
    let container = engine.start(&["--cap-add", "SYS_ADMIN"], "debian-systemd", &["/sbin/init"]);
    // Each look takes time from the services that it waits for.
    eventually_every(Duration::from_secs(5), "all services are up", || {
        container.exec(&[], &["systemctl", "is-system-running"]).text() == "running"
    });
    assert_eq!(container.exec(&[], &["systemctl", "is-active", "ssh", "cron"]).ok(), "active\nactive");
}
