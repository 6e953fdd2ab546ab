//! Differences between pouch-vm and runc in the tests of engines, each with its reason. Everything else in
//! these tests must be the same for both.

use crate::has_vm;

/// A difference that has a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// `--network host`.
    HostNetwork,
    /// `--network container:NAME`.
    ContainerNetwork,
    /// `--pid host`.
    HostProcesses,
    /// What `top` lists.
    Top,
    /// The memory in `podman stats`.
    StatsOfPodman,
    /// Killing the VMM.
    Vmm,
    /// `podman cp` to a tmpfs of a running container.
    CopyToTmpfs,
    /// A volume's mount point that is shared with the host.
    SharedPropagation,
    /// A socket of the host bound into a container.
    Socket,
    /// A socket in a folder of the host that is bound into a container.
    SocketInFolder,
    /// Device nodes on the root file system or a volume.
    DeviceNodes,
    /// How soon a change of a file shows elsewhere.
    Cache,
    /// The kernel that `uname` names.
    Kernel,
    /// The host's cgroup of a container.
    HostCgroup,
    /// More memory, or processors, than a container was started with.
    Growth,
}

impl Difference {
    /// Why it is so.
    pub fn reason(self) -> &'static str {
        match self {
            Difference::HostNetwork => "the VM has a network stack of its own; pouch-vm refuses, and says so",
            Difference::ContainerNetwork => {
                "two VMs cannot share one network stack; pouch-vm works or refuses, and says so"
            }
            Difference::HostProcesses => {
                "processes of the host are another kernel's; pouch-vm refuses, and says so"
            }
            Difference::Top => {
                "the engine asks the host's ps for the processes, which sees those of the VM, not those in it"
            }
            Difference::StatsOfPodman => {
                "podman counts a cgroup's anonymous memory only, and a VM's is shared memory; docker counts all"
            }
            Difference::Vmm => "there is no VMM to kill",
            Difference::CopyToTmpfs => {
                "a tmpfs is in the guest's memory; pouch-vm shows it to Podman read-only"
            }
            Difference::SharedPropagation => {
                "mounts cannot propagate out of the VM; pouch-vm refuses, and says so"
            }
            Difference::Socket => {
                "a socket ends in the host's kernel; pouch-vm passes it on or refuses, and says so"
            }
            Difference::SocketInFolder => {
                "nobody listens to the socket's file in the guest's kernel; one that is bound itself is passed on"
            }
            Difference::DeviceNodes => {
                "the VMM has no right to make device nodes on the host; a tmpfs of the guest takes them"
            }
            Difference::Cache => {
                "the guest believes for a second what it knows of a file, by each mount that shows the file"
            }
            Difference::Kernel => "the container has a kernel of its own",
            Difference::HostCgroup => "the host's cgroup holds the VM, not the processes in it",
            Difference::Growth => "a VM does not grow while it runs; pouch-vm refuses, and says so",
        }
    }

    /// Whether the runtime is the one with a VM; tells why that matters here.
    pub fn with_vm(self) -> bool {
        let who = crate::runtime();
        eprintln!("{self:?} is not the same with {who} and without a VM: {}", self.reason());
        has_vm()
    }
}
