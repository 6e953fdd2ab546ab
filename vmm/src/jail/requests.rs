//! The ioctl(2) requests of each kind of thread.
//!
//! Numbers are those of the kernel's include/uapi/linux, computed as in asm-generic/ioctl.h.

const NONE: u64 = 0;
const WRITE: u64 = 1;
const READ: u64 = 2;

/// `_IOC`: the direction, the group, the number in it, and the bytes of the argument.
const fn request(direction: u64, group: u8, number: u64, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | (group as u64) << 8 | number
}

const fn vhost(direction: u64, number: u64, size: usize) -> u64 {
    request(direction, 0xaf, number, size)
}

/// Bytes of `struct vhost_vring_state` and `struct vhost_vring_file`.
const VRING: usize = 8;

/// The event loop's: non-blocking sockets, and interfaces that are plugged in.
pub const MAIN: &[u64] = &[
    // FIONBIO (asm-generic/ioctls.h)
    0x5421,
    // TUNSETVNETHDRSZ
    request(WRITE, b'T', 216, 4),
    // KVM_IRQFD, KVM_IOEVENTFD
    request(WRITE, 0xae, 0x76, 32),
    request(WRITE, 0xae, 0x79, 64),
    // VHOST_SET_OWNER, VHOST_GET_FEATURES, VHOST_SET_MEM_TABLE
    vhost(NONE, 0x01, 0),
    vhost(READ, 0x00, 8),
    vhost(WRITE, 0x03, 8),
];

/// A vCPU's: the guest, and an interface whose driver starts or stops.
pub const VCPU: &[u64] = &[
    // KVM_RUN, KVM_KVMCLOCK_CTRL
    request(NONE, 0xae, 0x80, 0),
    request(NONE, 0xae, 0xad, 0),
    // TUNSETOFFLOAD
    request(WRITE, b'T', 208, 4),
    // VHOST_SET_FEATURES
    vhost(WRITE, 0x00, 8),
    // VHOST_SET_VRING_NUM, _ADDR, _BASE, _KICK, _CALL
    vhost(WRITE, 0x10, VRING),
    vhost(WRITE, 0x11, 40),
    vhost(WRITE, 0x12, VRING),
    vhost(WRITE, 0x20, VRING),
    vhost(WRITE, 0x21, VRING),
    // VHOST_NET_SET_BACKEND
    vhost(WRITE, 0x30, VRING),
];

/// The file server's: what chattr(1) and lsattr(1) ask of a file.
pub const FS: &[u64] = &[
    // FS_IOC_GETFLAGS, FS_IOC_SETFLAGS
    request(READ, b'f', 1, 8),
    request(WRITE, b'f', 2, 8),
    // FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR
    request(READ, b'X', 31, 28),
    request(WRITE, b'X', 32, 28),
    // FS_IOC_GETVERSION, FS_IOC_GETFSLABEL
    request(READ, b'v', 1, 8),
    request(READ, 0x94, 49, 256),
];

#[cfg(test)]
mod tests {
    use super::*;
    use vhost::vhost_kern::vhost_binding as vhost;

    #[test]
    fn the_numbers_are_the_kernels() {
        assert_eq!(MAIN[..2], [libc::FIONBIO, 0x4004_54d8]);
        assert_eq!(MAIN[2..4], [0x4020_ae76, 0x4040_ae79]);
        let main = [vhost::VHOST_SET_OWNER(), vhost::VHOST_GET_FEATURES(), vhost::VHOST_SET_MEM_TABLE()];
        assert_eq!(MAIN[4..], main);
        assert_eq!(VCPU[..3], [0xae80, 0xaead, 0x4004_54d0]);
        let vcpu = [
            vhost::VHOST_SET_FEATURES(),
            vhost::VHOST_SET_VRING_NUM(),
            vhost::VHOST_SET_VRING_ADDR(),
            vhost::VHOST_SET_VRING_BASE(),
            vhost::VHOST_SET_VRING_KICK(),
            vhost::VHOST_SET_VRING_CALL(),
            vhost::VHOST_NET_SET_BACKEND(),
        ];
        assert_eq!(VCPU[3..], vcpu);
        let files = [0x8008_6601, 0x4008_6602, 0x801c_581f, 0x401c_5820, 0x8008_7601, 0x8100_9431];
        assert_eq!(FS, files);
    }
}
