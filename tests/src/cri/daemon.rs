//! The containerd of a [`super::Node`]: its configuration, its images, its process.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, setsid};

use super::{Version, snapshotters};
use crate::containerd::IMAGE;
use crate::{Invocation, eventually, processes};

/// Where CRI keeps its images and containers.
const NAMESPACE: &str = "k8s.io";
/// The image of a sandbox. Other runtimes run it; pouch-vm does not.
const SANDBOX_IMAGE: &str = "docker.io/pouch-test/pause:latest";

/// The handler of the runtime whose sandboxes containerd creates by the sandbox API.
pub(super) const SANDBOXED: &str = "pouch-vm-sandboxed";

/// The same, with options of the runtime that no VM can have.
pub(super) const MISCONFIGURED: &str = "pouch-vm-misconfigured";

/// The images of the testbed.
const LAYOUT: &str = "oci:/var/lib/pouch-test/oci";

/// What differs between the daemons.
struct Daemon {
    name: &'static str,
    program: &'static str,
    /// The folder of programs that are looked for first.
    programs: &'static str,
    subnet: &'static str,
}

fn daemon(version: Version) -> Daemon {
    match version {
        Version::V1_7 => Daemon {
            name: "cri-1.7",
            program: "/usr/bin/containerd",
            programs: "/usr/bin",
            subnet: "10.217.0.0/24",
        },
        Version::V2_1 => Daemon {
            name: "cri-2.1",
            program: "/opt/docker-28/bin/containerd",
            programs: "/opt/docker-28/bin",
            subnet: "10.221.0.0/24",
        },
    }
}

impl Daemon {
    fn run(&self) -> PathBuf {
        Path::new("/run").join(self.name)
    }

    fn log(&self) -> PathBuf {
        Path::new("/var/log").join(format!("{}.log", self.name))
    }

    fn pid(&self) -> Option<i32> {
        let pid: i32 = fs::read_to_string(self.run().join("pid")).ok()?.trim().parse().ok()?;
        let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        (program == Path::new(self.program)).then_some(pid)
    }

    /// The daemon's configuration. Version 3 of the format came with containerd 2.0.
    fn configuration(&self, version: Version) -> String {
        let run = self.run().display().to_string();
        let (format, images, runtime, programs) = match version {
            Version::V1_7 => (2, None, "io.containerd.grpc.v1.cri", "bin_dir = \"/usr/lib/cni\""),
            Version::V2_1 => {
                let images = Some("io.containerd.cri.v1.images");
                (3, images, "io.containerd.cri.v1.runtime", "bin_dirs = [\"/usr/lib/cni\"]")
            }
        };
        // The sandbox API came with containerd 2.0.
        let sandboxed = match version {
            Version::V1_7 => String::new(),
            Version::V2_1 => {
                let handler = |name: &str| {
                    format!(
                        "[plugins.'{runtime}'.containerd.runtimes.{name}]\n\
                         runtime_type = \"io.containerd.pouch-vm.v2\"\n\
                         privileged_without_host_devices = true\nsandboxer = \"shim\"\n"
                    )
                };
                let options = format!(
                    "[plugins.'{runtime}'.containerd.runtimes.{MISCONFIGURED}.options]\ndefault_memory_mib = 8\n"
                );
                [handler(SANDBOXED), handler(MISCONFIGURED), options].concat()
            }
        };
        let runtimes = format!("[plugins.'{runtime}'.containerd.runtimes");
        let with_snapshotter = |name: &str| {
            format!(
                "{runtimes}.pouch-vm-{name}]\nruntime_type = \"io.containerd.pouch-vm.v2\"\nsnapshotter = \"{name}\"\n\
                 {runtimes}.runc-{name}]\nruntime_type = \"io.containerd.runc.v2\"\nsnapshotter = \"{name}\"\n"
            )
        };
        let snapshotted: String = snapshotters::SNAPSHOTTERS.map(with_snapshotter).concat();
        let snapshotters = snapshotters::configuration(self.name);
        let sandbox_image = match images {
            None => format!("[plugins.'{runtime}']\nsandbox_image = \"{SANDBOX_IMAGE}\""),
            Some(images) => format!("[plugins.'{images}'.pinned_images]\nsandbox = \"{SANDBOX_IMAGE}\""),
        };
        format!(
            "version = {format}\nroot = \"/var/lib/{name}\"\nstate = \"{run}/state\"\n\
             [grpc]\naddress = \"{run}/containerd.sock\"\n\
             {sandbox_image}\n\
             [plugins.'{runtime}'.cni]\n{programs}\nconf_dir = \"{run}/cni\"\n\
             [plugins.'{runtime}'.containerd]\ndefault_runtime_name = \"pouch-vm\"\n\
             [plugins.'{runtime}'.containerd.runtimes.pouch-vm]\nruntime_type = \"io.containerd.pouch-vm.v2\"\n\
             privileged_without_host_devices = true\n\
             {sandboxed}\
             [plugins.'{runtime}'.containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
             {snapshotted}{snapshotters}",
            name = self.name,
        )
    }

    fn network(&self) -> String {
        serde_json::json!({
            "cniVersion": "1.0.0",
            "name": self.name,
            "plugins": [{
                // Unlike a bridge, it leaves nothing behind.
                "type": "ptp", "ipMasq": false,
                "ipam": {
                    "type": "host-local", "dataDir": self.run().join("addresses"),
                    "ranges": [[{"subnet": self.subnet}]], "routes": [{"dst": "0.0.0.0/0"}],
                },
            }, {"type": "loopback"}],
        })
        .to_string()
    }
}

/// The directory of a sandbox that was created by the sandbox API.
pub(super) fn sandbox_bundle(version: Version, id: &str) -> PathBuf {
    let sandboxes = daemon(version).run().join("state/io.containerd.sandbox.controller.v1.shim");
    sandboxes.join(NAMESPACE).join(id)
}

/// Its socket.
pub(super) fn socket(version: Version) -> PathBuf {
    daemon(version).run().join("containerd.sock")
}

/// `ctr` for CRI's namespace of this daemon.
pub(super) fn ctr(version: Version, arguments: &[&str]) -> Invocation {
    let address = socket(version);
    let all = ["--address", address.to_str().expect("it is ASCII"), "--namespace", NAMESPACE];
    Invocation::of("ctr", [&all, arguments].concat())
}

/// Removes all that this snapshotter has. Nothing may use it.
#[track_caller]
pub(super) fn remove_snapshots(version: Version, snapshotter: &str) {
    let snapshots = |arguments: &[&str]| {
        ctr(version, &[&["snapshots", "--snapshotter", snapshotter], arguments].concat()).run()
    };
    eventually("the snapshots are removed", || {
        let list = snapshots(&["ls"]).ok();
        let names: Vec<&str> =
            list.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
        // One that others are based on is removed after them.
        for name in &names {
            snapshots(&["rm", name]);
        }
        names.is_empty()
    });
}

/// The PID of the process that stands for a container on the host.
#[track_caller]
pub(super) fn pid_of(version: Version, id: &str) -> i32 {
    let list = ctr(version, &["task", "ls"]).run().ok();
    let line = list.lines().find(|line| line.starts_with(id)).expect("it has a task");
    line.split_whitespace().nth(1).and_then(|pid| pid.parse().ok()).expect("a PID")
}

/// Starts the daemon of this version, unless it runs. One test at a time does it.
#[track_caller]
pub(super) fn ensure(version: Version) {
    let daemon = daemon(version);
    fs::create_dir_all(daemon.run().join("cni")).unwrap();
    let lock = fs::File::create(daemon.run().join("lock")).unwrap();
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap();
    if daemon.pid().is_some() {
        return;
    }
    fs::write(daemon.run().join("config.toml"), daemon.configuration(version)).unwrap();
    fs::write(daemon.run().join("cni/10-bridge.conflist"), daemon.network()).unwrap();
    snapshotters::prepare(daemon.name, version as usize);
    start(&daemon);
    eventually("containerd answers", || ctr(version, &["version"]).run().status == 0);
    // It comes last.
    let images = ctr(version, &["images", "ls", "-q"]).run().ok();
    if !images.contains(SANDBOX_IMAGE) {
        load_images(version);
    }
}

#[allow(clippy::zombie_processes, reason = "it outlives the test")]
fn start(daemon: &Daemon) {
    let log = fs::OpenOptions::new().create(true).append(true).open(daemon.log()).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = std::process::Command::new(daemon.program);
    command.arg("--config").arg(daemon.run().join("config.toml"));
    command.env("PATH", format!("{}:/usr/local/bin:{path}", daemon.programs)).current_dir("/");
    command.env(snapshotters::WITHOUT_UDEV, "1");
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    // SAFETY: setsid is safe between fork and exec.
    unsafe { command.pre_exec(|| setsid().map(drop).map_err(Into::into)) };
    let child = command.spawn().unwrap();
    fs::write(daemon.run().join("pid"), child.id().to_string()).unwrap();
}

/// The image that tests use, and one for sandboxes: the same, but with a process that does nothing.
fn load_images(version: Version) {
    let folder = tempfile::tempdir().unwrap();
    let layout = format!("oci:{}:pause", folder.path().join("layout").display());
    let archive = folder.path().join("image.tar");
    let archive = archive.to_str().expect("it is ASCII");
    let skopeo = |from: &str, to: &str| {
        Invocation::of("skopeo", ["copy", "--quiet", from, to]).run().ok();
    };
    let import = |from: &str, name: &str| {
        skopeo(from, &format!("oci-archive:{archive}:{name}"));
        ctr(version, &["images", "import", archive]).run().ok();
        fs::remove_file(archive).unwrap();
    };
    let source = format!("{LAYOUT}:{IMAGE}");
    import(&source, IMAGE);
    skopeo(&source, &layout);
    let image = layout.trim_start_matches("oci:");
    let command = ["--config.cmd", "sleep", "--config.cmd", "1000000"];
    Invocation::of("umoci", [&["config", "--image", image], &command[..]].concat()).run().ok();
    import(&layout, SANDBOX_IMAGE);
}

/// Ends the daemon; its containers go on.
#[track_caller]
pub(super) fn stop(version: Version, signal: Signal) {
    let daemon = daemon(version);
    let Some(pid) = daemon.pid() else { return };
    nix::sys::signal::kill(Pid::from_raw(pid), signal).unwrap();
    eventually("containerd ends", || !processes::runs(pid));
}

/// The last lines of its log.
pub(super) fn log_tail(version: Version) -> String {
    let log = fs::read_to_string(daemon(version).log()).unwrap_or_default();
    let lines: Vec<&str> = log.lines().rev().take(20).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
