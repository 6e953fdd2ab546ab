//! A tap device.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
};

use super::header::HEADER_LENGTH;

// linux/if_tun.h
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;

/// The file is no usable tap device.
#[derive(Debug, thiserror::Error)]
#[error("the descriptor is not a tap device opened with IFF_VNET_HDR")]
pub struct TapError(#[source] io::Error);

/// A tap device that does not block and has virtio headers.
pub struct Tap(File);

impl Tap {
    /// Takes a tap device over.
    ///
    /// # Errors
    /// [`TapError`] if it is none.
    pub fn new(file: File) -> Result<Self, TapError> {
        let length = HEADER_LENGTH as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads an int through the pointer, which is to a live one.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &raw const length) };
        if result < 0 {
            return Err(TapError(io::Error::last_os_error()));
        }
        // SAFETY: these calls take and give numbers only.
        let result = unsafe {
            let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
            libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)
        };
        if result < 0 {
            return Err(TapError(io::Error::last_os_error()));
        }
        Ok(Tap(file))
    }

    /// Any file as a tap device, for tests.
    #[cfg(test)]
    pub fn pretend(file: File) -> Self {
        Tap(file)
    }

    /// Leaves checksums and segmentation to the guest as far as it took the `features`.
    ///
    /// # Errors
    /// The error of the ioctl.
    pub fn set_offloads(&self, features: u64) -> io::Result<()> {
        let has = |bit: u32| features & 1 << bit != 0;
        let mut offloads = 0;
        if has(VIRTIO_NET_F_GUEST_CSUM) {
            offloads |= TUN_F_CSUM;
            if has(VIRTIO_NET_F_GUEST_TSO4) {
                offloads |= TUN_F_TSO4;
            }
            if has(VIRTIO_NET_F_GUEST_TSO6) {
                offloads |= TUN_F_TSO6;
            }
        }
        // SAFETY: TUNSETOFFLOAD takes a number.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), TUNSETOFFLOAD, offloads) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// The descriptor, for vhost-net.
    pub fn file(&self) -> &File {
        &self.0
    }

    /// Takes one frame with its header.
    pub fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(frame)
    }

    /// Sends one frame with its header.
    pub fn write(&self, frame: &[u8]) -> io::Result<usize> {
        (&self.0).write(frame)
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
