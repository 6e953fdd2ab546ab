//! File attributes: as the host reports them, and as the guest sees them.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags, statx};

use super::abi::{self, ATTR_SUBMOUNT, Attr, AttrOut, EntryOut, StatxOut, StatxTime};
use super::inodes::{Identity, Inode};

/// The host's attributes of a file.
pub struct Status(Statx);

/// The attributes of `file`, which may have been opened with `O_PATH`.
///
/// # Errors
/// The error of statx(2).
pub fn status(file: impl AsFd) -> io::Result<Status> {
    query(file, AtFlags::empty())
}

/// As [`status`], but without a request to the server of a network file system, which could take long.
///
/// # Errors
/// The error of statx(2).
pub fn status_at_hand(file: impl AsFd) -> io::Result<Status> {
    query(file, AtFlags::STATX_DONT_SYNC)
}

/// The ID of the mount of what is at `name` of a directory.
///
/// # Errors
/// The error of statx(2).
pub fn mount_at(directory: impl AsFd, name: &CStr) -> io::Result<u64> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    Ok(statx(directory, name, flags, StatxFlags::MNT_ID)?.stx_mnt_id)
}

fn query(file: impl AsFd, flags: AtFlags) -> io::Result<Status> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    Ok(Status(statx(file, c"", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | flags, wanted)?))
}

impl Status {
    /// The identity of the file.
    pub fn identity(&self) -> Identity {
        let Statx { stx_mnt_id, stx_dev_major, stx_dev_minor, stx_ino, .. } = self.0;
        Identity { mount: stx_mnt_id, device: (stx_dev_major, stx_dev_minor), number: stx_ino }
    }

    /// Its type.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.0.stx_mode.into())
    }

    /// Its type and permissions.
    pub fn mode(&self) -> u32 {
        self.0.stx_mode.into()
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.0.stx_size
    }

    /// The attributes for the guest.
    pub fn attr(&self, inode: &Inode) -> Attr {
        let stat = &self.0;
        Attr {
            ino: inode.shown_number,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            // The protocol has them as unsigned numbers, which the guest takes for signed ones.
            atime: stat.stx_atime.tv_sec as u64,
            mtime: stat.stx_mtime.tv_sec as u64,
            ctime: stat.stx_ctime.tv_sec as u64,
            atime_ns: stat.stx_atime.tv_nsec,
            mtime_ns: stat.stx_mtime.tv_nsec,
            ctime_ns: stat.stx_ctime.tv_nsec,
            mode: stat.stx_mode.into(),
            nlink: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            rdev: device_number(stat.stx_rdev_major, stat.stx_rdev_minor),
            block_size: stat.stx_blksize,
            flags: 0,
        }
    }

    /// As the answer to a request for the attributes of the protocol's own.
    pub fn attr_out(&self, inode: &Inode, timeout: Duration) -> AttrOut {
        AttrOut {
            attr_valid: timeout.as_secs(),
            attr_valid_ns: timeout.subsec_nanos(),
            dummy: 0,
            attr: self.attr(inode),
        }
    }

    /// As the answer to a request for the attributes of statx(2).
    pub fn statx_out(&self, inode: &Inode, timeout: Duration) -> StatxOut {
        let stat = &self.0;
        let time = |time: &rustix::fs::StatxTimestamp| StatxTime {
            seconds: time.tv_sec,
            nanoseconds: time.tv_nsec,
            reserved: 0,
        };
        let basic = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        StatxOut {
            attr_valid: timeout.as_secs(),
            attr_valid_ns: timeout.subsec_nanos(),
            stat: abi::Statx {
                mask: stat.stx_mask & basic.bits(),
                block_size: stat.stx_blksize,
                attributes: stat.stx_attributes.bits(),
                nlink: stat.stx_nlink,
                uid: stat.stx_uid,
                gid: stat.stx_gid,
                mode: stat.stx_mode,
                ino: inode.shown_number,
                size: stat.stx_size,
                blocks: stat.stx_blocks,
                attributes_mask: stat.stx_attributes_mask.bits(),
                atime: time(&stat.stx_atime),
                btime: time(&stat.stx_btime),
                ctime: time(&stat.stx_ctime),
                mtime: time(&stat.stx_mtime),
                rdev_major: stat.stx_rdev_major,
                rdev_minor: stat.stx_rdev_minor,
                dev_major: stat.stx_dev_major,
                dev_minor: stat.stx_dev_minor,
                ..Default::default()
            },
            ..Default::default()
        }
    }

    /// As an entry of the directory `parent`.
    pub fn entry_out(
        &self,
        parent: &Inode,
        inode: &Inode,
        name_timeout: Duration,
        timeout: Duration,
    ) -> EntryOut {
        let mut attr = self.attr(inode);
        if inode.is_submount_of(parent) {
            attr.flags |= ATTR_SUBMOUNT;
        }
        EntryOut {
            node: inode.node,
            generation: 0,
            entry_valid: name_timeout.as_secs(),
            attr_valid: timeout.as_secs(),
            entry_valid_ns: name_timeout.subsec_nanos(),
            attr_valid_ns: timeout.subsec_nanos(),
            attr,
        }
    }
}

/// A device number as the kernel gives it to FUSE (`new_encode_dev` of include/linux/kdev_t.h).
fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_packed_as_linux_does() {
        assert_eq!(
            [device_number(0, 0), device_number(8, 1), device_number(1, 0x1_23)],
            [0, 0x801, 0x0010_0123]
        );
    }
}
