//! The descriptors for a VM's interfaces, which others open: a sandbox host process has no files of the host while its
//! container runs.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns};
use pouch_vmm_api::config::MAX_NETWORK_SLOTS;
use pouch_vmm_api::restricted::{self, Access};
use procfs::process::Process;

use super::inspect;
use super::netlink::Netlink;

/// Where tap devices are made.
const TUN: &str = "/dev/net/tun";
/// Where the host's kernel takes over the frames of an interface.
const VHOST_NET: &str = "/dev/vhost-net";

/// The descriptors for one interface.
pub struct NetworkDevice {
    /// For a tap device.
    pub tun: File,
    /// With it the host's kernel moves the frames. Without it the VMM does, which always works.
    pub vhost: Option<File>,
}

/// The descriptors for all interfaces that a VM can have in its life.
#[derive(Debug, Default)]
pub struct NetworkDevices {
    tuns: Vec<File>,
    /// For the first interfaces.
    vhosts: Vec<File>,
    /// Why there is none for tap devices.
    refused: Option<io::Error>,
}

impl NetworkDevices {
    /// Opens the descriptors for tap devices, which will be made in the network namespace of the calling thread.
    pub fn open() -> Self {
        let open = || restricted::open(Path::new(TUN), Access::Write);
        // A container without a network needs none.
        match (0..MAX_NETWORK_SLOTS).map(|_| open()).collect::<io::Result<Vec<File>>>() {
            Ok(tuns) => NetworkDevices { tuns, ..NetworkDevices::default() },
            Err(error) => NetworkDevices { refused: Some(error), ..NetworkDevices::default() },
        }
    }

    /// Takes descriptors of [`open_vhosts`] for the interfaces that are wired next.
    pub fn set_vhosts(&mut self, vhosts: impl IntoIterator<Item = OwnedFd>) {
        self.vhosts = vhosts.into_iter().map(File::from).collect();
    }

    /// Takes the descriptors for an interface.
    ///
    /// # Errors
    /// The kernel's error when they were opened, or that all are taken.
    pub fn take(&mut self) -> io::Result<NetworkDevice> {
        match self.tuns.pop() {
            Some(tun) => Ok(NetworkDevice { tun, vhost: self.vhosts.pop() }),
            None => {
                Err(self.refused.take().unwrap_or_else(|| io::Error::other("all descriptors are in use")))
            }
        }
    }
}

/// Opens `/dev/vhost-net` once for each interface of the network namespace that the process `pid` is in. Without one, as
/// for interfaces that come later, the VMM moves the frames. To close one takes the kernel some 10 ms, so none is
/// opened in advance.
pub fn open_vhosts(pid: i32) -> Vec<File> {
    if has_loopback_only(pid) {
        return Vec::new();
    }
    let namespace = PathBuf::from(format!("/proc/{pid}/ns/net"));
    let count = thread::Builder::new().stack_size(256 * 1024).spawn(move || interfaces(&namespace));
    let count = count.ok().and_then(|thread| thread.join().ok()?.ok()).unwrap_or(0);
    let open = |_| restricted::open(Path::new(VHOST_NET), Access::Write).ok();
    (0..count.min(MAX_NETWORK_SLOTS.into())).map_while(open).collect()
}

/// Whether there is nothing to count in the process's network namespace. To enter it takes longer than to read this.
fn has_loopback_only(pid: i32) -> bool {
    let devices = Process::new(pid).and_then(|process| process.dev_status());
    devices.is_ok_and(|devices| devices.keys().all(|name| name == "lo"))
}

/// How many interfaces a VM in this namespace would have. The calling thread is in the namespace then.
fn interfaces(namespace: &Path) -> io::Result<usize> {
    setns(File::open(namespace)?, CloneFlags::CLONE_NEWNET)?;
    let mut netlink = Netlink::open().map_err(io::Error::other)?;
    Ok(inspect::inspect(&mut netlink).map_err(io::Error::other)?.interfaces.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_tap_device_for_each_interface_and_the_kernel_moves_the_frames_of_the_first() {
        let null = || File::open("/dev/null").unwrap();
        let tuns = (0..MAX_NETWORK_SLOTS).map(|_| null()).collect();
        let mut devices = NetworkDevices { tuns, ..NetworkDevices::default() };
        devices.set_vhosts([null(), null()].map(OwnedFd::from));
        let vhosts: Vec<bool> =
            (0..MAX_NETWORK_SLOTS).map(|_| devices.take().unwrap().vhost.is_some()).collect();
        assert_eq!(vhosts, [true, true, false, false, false, false, false, false]);
        assert!(devices.take().is_err());
    }

    #[test]
    fn why_there_is_none_is_told_when_one_is_needed() {
        let refused = Some(io::Error::from_raw_os_error(libc::ENOENT));
        let mut devices = NetworkDevices { refused, ..NetworkDevices::default() };
        assert_eq!(devices.take().err().unwrap().raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn a_namespace_without_interfaces_needs_none() {
        // No process has this number.
        assert!(open_vhosts(-1).is_empty());
    }
}
