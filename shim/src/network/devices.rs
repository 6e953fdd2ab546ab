//! The descriptors for a VM's interfaces. They are opened before the sandbox host process gives up the host's files.

use std::fs::File;
use std::io;
use std::path::Path;

use pouch_vmm_api::config::MAX_NETWORK_SLOTS;
use pouch_vmm_api::restricted::{self, Access};

/// Where tap devices are made.
const TUN: &str = "/dev/net/tun";
/// Where the host's kernel takes over the frames of an interface.
const VHOST_NET: &str = "/dev/vhost-net";
/// How many descriptors of [`VHOST_NET`] are kept for interfaces that come while the container runs: each takes some
/// 40 KiB of the kernel's memory. Frames of further interfaces are moved by the VMM.
const SPARE: usize = 2;

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
    vhosts: Vec<File>,
    /// Why there is none.
    refused: Option<io::Error>,
}

impl NetworkDevices {
    /// Opens the descriptors. Tap devices will be made in the network namespace of the calling thread.
    pub fn open(vhost_net: bool) -> Self {
        let all = |path| {
            let open = || restricted::open(Path::new(path), Access::Write);
            (0..MAX_NETWORK_SLOTS).map(|_| open()).collect::<io::Result<Vec<File>>>()
        };
        // A container without a network needs none.
        let (tuns, refused) = match all(TUN) {
            Ok(tuns) => (tuns, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        NetworkDevices {
            tuns,
            vhosts: if vhost_net { all(VHOST_NET).unwrap_or_default() } else { Vec::new() },
            refused,
        }
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

    /// Closes the descriptors that are not worth their memory, now that the first interfaces are there.
    pub fn trim(&mut self) {
        self.vhosts.truncate(SPARE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices() -> NetworkDevices {
        let null = || File::open("/dev/null").unwrap();
        let all = || (0..MAX_NETWORK_SLOTS).map(|_| null()).collect();
        NetworkDevices { tuns: all(), vhosts: all(), refused: None }
    }

    #[test]
    fn there_is_a_tap_device_for_each_interface_and_the_kernel_moves_the_frames_of_the_first() {
        let mut devices = devices();
        assert!(devices.take().unwrap().vhost.is_some());
        devices.trim();
        let later: Vec<bool> =
            (1..MAX_NETWORK_SLOTS).map(|_| devices.take().unwrap().vhost.is_some()).collect();
        assert_eq!(later, [true, true, false, false, false, false, false]);
        assert!(devices.take().is_err());
    }

    #[test]
    fn why_there_is_none_is_told_when_one_is_needed() {
        let refused = Some(io::Error::from_raw_os_error(libc::ENOENT));
        let mut devices = NetworkDevices { refused, ..NetworkDevices::default() };
        assert_eq!(devices.take().err().unwrap().raw_os_error(), Some(libc::ENOENT));
    }
}
