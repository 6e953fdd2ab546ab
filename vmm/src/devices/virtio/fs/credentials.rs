//! The identity with which a thread accesses the host's files.
//!
//! A request uses the user and the groups of the requesting process in the guest, and no capability that this
//! process lacks. For the host's local disks, the guest kernel has already checked permissions, with
//! attributes that may be a second old. For other file systems, such as NFS with root_squash or a user's FUSE
//! mount, only the host can check them.

use std::cell::RefCell;
use std::io;

use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::message::{Caller, Known};

/// The capabilities that the guest's processes may have over shared files.
const FILES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETFCAP);
/// The capabilities needed to change the identity, always effective.
const IDENTITY: CapabilitySet = CapabilitySet::SETUID.union(CapabilitySet::SETGID);
/// `CAP_SYS_ADMIN` as a bit.
const SYS_ADMIN: u64 = CapabilitySet::SYS_ADMIN.bits();

/// Whether the caller may use extended attributes of the namespace `trusted` (xattr(7)).
pub fn is_trusted(caller: &Caller) -> bool {
    match caller.known.as_ref().and_then(|known| known.capabilities) {
        Some(capabilities) => capabilities & SYS_ADMIN != 0,
        None => caller.uid == 0,
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    capabilities: CapabilitySet,
}

thread_local! {
    /// The identity of this thread; `None` before the first request, and after a change that failed.
    static CURRENT: RefCell<Option<Identity>> = const { RefCell::new(None) };
}

/// Gives this thread the identity of a request's caller, until the next call.
///
/// # Errors
/// `EINVAL` for an invalid user or group; the kernel's error.
pub fn assume(caller: &Caller) -> io::Result<()> {
    let (groups, capabilities) = match &caller.known {
        // Without the capabilities, the guest's kernel alone decides: its groups are not known either.
        None => (Vec::new(), FILES),
        Some(Known { groups, capabilities: None }) => (groups.clone(), FILES),
        Some(Known { groups, capabilities: Some(bits) }) => {
            (groups.clone(), FILES & CapabilitySet::from_bits_truncate(*bits))
        }
    };
    become_identity(Identity { uid: caller.uid, gid: caller.gid, groups, capabilities })
}

/// Gives this thread its own identity: root, with all of the VMM's capabilities.
///
/// # Errors
/// The kernel's error.
pub fn assume_own() -> io::Result<()> {
    become_identity(Identity { uid: 0, gid: 0, groups: Vec::new(), capabilities: FILES })
}

fn become_identity(wanted: Identity) -> io::Result<()> {
    CURRENT.with_borrow_mut(|current| {
        if current.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let before = current.take();
        change(before.as_ref(), &wanted)?;
        *current = Some(wanted);
        Ok(())
    })
}

/// Sets what differs from `wanted`. rustix calls the kernel directly, which changes only this thread.
fn change(before: Option<&Identity>, wanted: &Identity) -> io::Result<()> {
    // The value that means "unchanged" for the kernel, and that the guest sends for "nobody".
    if wanted.uid == u32::MAX || wanted.gid == u32::MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    if before.is_none_or(|before| before.groups != wanted.groups) {
        let groups: Vec<Gid> = wanted.groups.iter().map(|group| Gid::from_raw(*group)).collect();
        rustix::thread::set_thread_groups(&groups)?;
    }
    if before.is_none_or(|before| before.gid != wanted.gid) {
        let gid = Gid::from_raw(wanted.gid);
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    }
    // Real, effective and saved: a user's FUSE mount asks for all three (`fuse_allow_current_process`).
    if before.is_none_or(|before| before.uid != wanted.uid) {
        let uid = Uid::from_raw(wanted.uid);
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    }
    if before.is_none_or(|before| before.capabilities != wanted.capabilities) {
        let permitted = rustix::thread::capabilities(None)?.permitted;
        rustix::thread::set_capabilities(
            None,
            CapabilitySets {
                effective: (wanted.capabilities | IDENTITY) & permitted,
                permitted,
                inheritable: CapabilitySet::empty(),
            },
        )?;
    }
    Ok(())
}
