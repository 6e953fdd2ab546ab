//! Rich containers: those whose first process is an init system.
//!
//! On a shared kernel an engine must either deny systemd what it needs or use `--privileged`. Here the VM is
//! the boundary, so a container that starts an init system gets what it needs, and nothing else. Each change
//! below has its reason.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, MountBuilder, Spec};

/// Commands that start systemd whatever else may be called `init`, and the name of systemd itself: as Podman has it.
const INIT_COMMANDS: &[&str] = &["/sbin/init", "/usr/sbin/init", "/usr/local/sbin/init"];
const SYSTEMD: &str = "systemd";

const CGROUP: &str = "/sys/fs/cgroup";

/// Whether the first process is an init system, by the name that it is started with.
pub fn is_rich(spec: &Spec) -> bool {
    let args = spec.process().as_ref().and_then(|process| process.args().as_deref()).unwrap_or(&[]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    // A command of an image that is given as one line is run by a shell.
    let program = match args.as_slice() {
        ["/bin/sh", "-c", program, ..] => program,
        [program, ..] => program,
        [] => return false,
    };
    INIT_COMMANDS.contains(program) || Path::new(program).file_name().is_some_and(|name| name == SYSTEMD)
}

/// Adds what an init system needs.
pub fn adapt(spec: &mut Spec) {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    // systemd manages its services in cgroups of its own, so it must be able to write where
    // engines mount read-only. The cgroup namespace, which every container gets, confines it.
    mounts.retain(|mount| mount.destination() != Path::new(CGROUP));
    let at = mounts
        .iter()
        .position(|mount| mount.destination() == Path::new("/sys"))
        .map_or(mounts.len(), |at| at + 1);
    mounts.splice(at..at, mount("cgroup", CGROUP, &["rw", "nosuid", "noexec", "nodev", "relatime"]));
    // State of the running system, which an init mounts itself where it may, but not before it has written to it.
    // What the image has there stays: Podman's mounts and options. Before other mounts, because volumes may lie
    // below.
    for target in ["/var/log/journal", "/tmp", "/run/lock", "/run"] {
        if !mounts.iter().any(|mount| same(mount.destination(), target)) {
            mounts.splice(0..0, mount("tmpfs", target, &["rw", "nosuid", "nodev", "tmpcopyup"]));
        }
    }
    spec.set_mounts(Some(mounts));
    if let Some(linux) = spec.linux_mut() {
        // Masking or write-protecting the hierarchy would undo the mount.
        let keep = |path: &String| !Path::new(path).starts_with(CGROUP);
        let masked = linux.masked_paths().clone().map(|paths| paths.into_iter().filter(keep).collect());
        let readonly = linux.readonly_paths().clone().map(|paths| paths.into_iter().filter(keep).collect());
        linux.set_masked_paths(masked).set_readonly_paths(readonly);
    }
    if let Some(process) = spec.process_mut() {
        let env = process.env_mut().get_or_insert_default();
        // The interface by which systemd knows that it is in a container: it then leaves the
        // kernel's settings, devices and clock alone.
        if !env.iter().any(|entry| entry.starts_with("container=")) {
            env.push("container=pouch-vm".to_owned());
        }
    }
}

/// /var/run is /run on every current distribution.
fn same(destination: &Path, target: &str) -> bool {
    destination == Path::new(target)
        || (target.starts_with("/run") && destination == Path::new("/var").join(&target[1..]))
}

fn mount(kind: &str, target: &str, options: &[&str]) -> Option<Mount> {
    MountBuilder::default()
        .destination(PathBuf::from(target))
        .typ(kind)
        .source(PathBuf::from(kind))
        .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        .build()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(program: &str) -> Spec {
        let json = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "/r"},
            "process": {"args": [program], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
                {"destination": "/run/secrets", "type": "bind", "source": "/x", "options": ["rbind"]},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {
                "namespaces": [{"type": "mount"}],
                "readonlyPaths": ["/proc/sys", "/sys/fs/cgroup"],
            },
        });
        super::super::parse(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn inits_are_known_by_name() {
        for program in ["/sbin/init", "/usr/sbin/init", "/lib/systemd/systemd", "systemd"] {
            assert!(is_rich(&spec(program)), "{program}");
        }
        // s6-overlay is /init, and expects what its image has below /run.
        for program in
            ["sh", "/init", "init", "/sbin/docker-init", "/usr/bin/tini", "initdb", "/run/podman-init"]
        {
            assert!(!is_rich(&spec(program)), "{program}");
        }
    }

    #[test]
    fn an_init_gets_its_mounts_in_order() {
        let mut spec = spec("/sbin/init");
        adapt(&mut spec);
        let mounts = spec.mounts().as_ref().unwrap();
        let order: Vec<_> = mounts.iter().map(|mount| mount.destination().to_str().unwrap()).collect();
        let expected = [
            "/run",
            "/run/lock",
            "/var/log/journal",
            "/proc",
            "/sys",
            "/sys/fs/cgroup",
            "/run/secrets",
            "/tmp",
        ];
        assert_eq!(order, expected);
        assert!(mounts[0].options().as_ref().unwrap().contains(&"tmpcopyup".to_owned()));
        assert!(mounts[5].options().as_ref().unwrap().contains(&"rw".to_owned()));
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.readonly_paths().as_deref().unwrap(), ["/proc/sys"]);
        assert_eq!(spec.process().as_ref().unwrap().env().as_deref().unwrap(), ["container=pouch-vm"]);
    }
}
