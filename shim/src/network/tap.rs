//! A tap device: frames sent to the interface are read from a descriptor, and vice versa.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};

use super::netlink::{Netlink, NetlinkError};

/// How the names of the devices begin; the kernel adds a number.
pub const PREFIX: &str = "pouch-tap";

/// The most that the kernel lets a tap device have: a frame of 64 KiB less the Ethernet header.
const MTU_MAX: u32 = 65_521;

// linux/if_tun.h
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

/// A tap device that lives as long as a descriptor of it is open.
pub struct Tap {
    /// Its frames, each with a virtio header.
    pub file: File,
    /// The interface's number.
    pub index: u32,
    name: String,
}

/// Makes a tap device with a descriptor of `/dev/net/tun`, in the network namespace in which that was opened. The
/// calling thread must be in it.
///
/// # Errors
/// The kernel's error.
pub fn create(file: File) -> io::Result<Tap> {
    // SAFETY: an ifreq is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The rest of the name stays zero.
    for (to, from) in request.ifr_name.iter_mut().zip(PREFIX.bytes().chain(*b"%d")) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq through a valid pointer.
    if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel left a name with a NUL in the array.
    let index = unsafe { libc::if_nametoindex(request.ifr_name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    let name: String =
        request.ifr_name.iter().take_while(|byte| **byte != 0).map(|byte| *byte as u8 as char).collect();
    Ok(Tap { file, index, name })
}

impl Tap {
    /// Brings the device up, for packets of up to `mtu` bytes.
    ///
    /// # Errors
    /// [`NetlinkError`] from the kernel.
    pub fn bring_up(&self, netlink: &mut Netlink, mtu: u32) -> Result<(), NetlinkError> {
        // Otherwise the host's IPv6 stack would communicate with the guest. Without IPv6 the file does not exist.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.name), "1");
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        // Redirected frames may be longer.
        message.attributes.push(LinkAttribute::Mtu(mtu.min(MTU_MAX)));
        netlink.change("bring a tap device up", RouteNetlinkMessage::SetLink(message))
    }
}
