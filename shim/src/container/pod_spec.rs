//! What is different for a pod: the specification of its sandbox, and of containers that join it.

use std::collections::BTreeMap;
use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::Bundle;
use super::guest_spec::{
    self, GuestSpec, RootSource, TranslateError, require_namespaces, tmpfs_size, unsupported,
};
use crate::sandbox::{PidNamespace, PodSetup};

/// Bytes of the shared memory of a pod that names none, as Docker and CRI have it.
const DEFAULT_SHM: u64 = 64 << 20;

/// What a pod's sandbox needs in the guest. Its process is not run, so only a part of its specification counts.
///
/// # Errors
/// [`TranslateError`] names the field.
pub fn of_pod(bundle: &Bundle) -> Result<GuestSpec, TranslateError> {
    let mut spec = bundle.spec.clone();
    let mut sysctls: Vec<(String, String)> = Vec::new();
    if let Some(linux) = spec.linux_mut() {
        let has = |kind| linux.namespaces().iter().flatten().any(|namespace| namespace.typ() == kind);
        for (kind, what) in [
            (LinuxNamespaceType::Ipc, "hostIPC: the pod cannot share the host's IPC namespace"),
            (LinuxNamespaceType::Pid, "hostPID: the pod cannot share the host's PID namespace"),
        ] {
            if !has(kind) {
                return Err(unsupported("linux.namespaces", what));
            }
        }
        if has(LinuxNamespaceType::User) {
            return Err(unsupported(
                "linux.namespaces user",
                "pods with user namespaces are not supported yet",
            ));
        }
        sysctls.extend(linux.sysctl().clone().unwrap_or_default());
        // A container of a VM keeps these; the sandbox is none.
        let own = [LinuxNamespaceType::Ipc, LinuxNamespaceType::Uts, LinuxNamespaceType::User];
        let kept = linux.namespaces().clone().unwrap_or_default();
        linux.set_namespaces(Some(kept.into_iter().filter(|one| !own.contains(&one.typ())).collect()));
        // In the cgroup of the pod, which its engine limits.
        linux.set_resources(None);
    }
    let network_namespace = guest_spec::translate_linux(&mut spec)?;
    let shm = spec.mounts().iter().flatten().find(|mount| mount.destination() == Path::new("/dev/shm"));
    let shm = shm.and_then(|mount| tmpfs_size(mount.source().as_deref()?));
    let pod = PodSetup { shm_size: shm.unwrap_or(DEFAULT_SHM), sysctls };
    spec.set_process(None).set_mounts(None);
    let warnings = bundle.warnings.clone();
    Ok(GuestSpec {
        spec,
        shared: Vec::new(),
        root: RootSource::Directory,
        devices: Vec::new(),
        network_namespace,
        pod: Some(pod),
        pids: PidNamespace::Own,
        warnings,
    })
}

/// The processes on the host that stand for the containers of a pod. A specification names a namespace of another
/// container as `/proc/PID/ns/…`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbors {
    /// The PID of the sandbox.
    pub sandbox: i32,
    /// The IDs of its containers, by their PIDs.
    pub containers: BTreeMap<i32, String>,
}

impl Neighbors {
    /// The PID namespace that a path of the host means.
    fn pid_namespace(&self, path: &Path) -> Option<PidNamespace> {
        let (pid, "ns/pid") = path.strip_prefix("/proc").ok()?.to_str()?.split_once('/')? else {
            return None;
        };
        let pid = pid.parse().ok()?;
        if pid == self.sandbox {
            return Some(PidNamespace::Pod);
        }
        self.containers.get(&pid).cloned().map(PidNamespace::Of)
    }
}

/// The linux section of a container that joins others: their network, IPC and UTS namespaces are those of the guest.
/// Returns the PID namespace to be in.
pub(super) fn translate_linux(
    spec: &mut Spec,
    neighbors: &Neighbors,
) -> Result<PidNamespace, TranslateError> {
    let Some(linux) = spec.linux_mut() else { return Ok(PidNamespace::Own) };
    let mut kept = Vec::new();
    let mut pids = PidNamespace::Own;
    for namespace in linux.namespaces().clone().unwrap_or_default() {
        use LinuxNamespaceType::{Ipc, Network, Pid, Uts};
        let kind = namespace.typ();
        match (kind, namespace.path()) {
            (Network, _) | (Ipc | Uts, Some(_)) => {}
            (Pid, Some(path)) => {
                pids = neighbors.pid_namespace(path).ok_or_else(|| {
                    let problem = "is of no container of the pod; name one of its containers, or the pod";
                    unsupported(format!("linux.namespaces pid {}", path.display()), problem)
                })?;
            }
            (_, Some(_)) => {
                return Err(unsupported(
                    format!("linux.namespaces {kind}"),
                    "containers of a pod cannot share this namespace yet; give each its own",
                ));
            }
            (_, None) => kept.push(namespace),
        }
    }
    if pids == PidNamespace::Own {
        require_namespaces(&kept)?;
    }
    let own_name = kept.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Uts);
    linux.set_namespaces(Some(kept));
    linux.set_cgroups_path(None);
    if linux.mount_label().is_some() {
        linux.set_mount_label(None);
    }
    if !own_name {
        spec.set_hostname(None).set_domainname(None);
    }
    Ok(pids)
}
