//! Extended attributes (xattr(7)).
//!
//! Only root on the host can use the namespace `trusted`, and the VMM is not root there. Attributes that a
//! guest sets in this namespace, for example for an overlay file system, are stored on the host as
//! `user.pouch-vm.trusted.*`.

use std::ffi::{CStr, CString};
use std::io;

use rustix::fs::{XattrFlags, getxattr, getxattr_query, listxattr, removexattr, setxattr};

use super::credentials;
use super::inodes::Inode;
use super::message::Caller;

/// Bytes of the largest value and of the longest list (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX` of linux/limits.h).
const MAX_SIZE: usize = 65_536;
const TRUSTED: &[u8] = b"trusted.";
const HIDDEN: &[u8] = b"user.pouch-vm.";

/// An answer of bytes, or of how many there are.
pub enum Answer {
    /// The value, or the list.
    Bytes(Vec<u8>),
    /// Its size.
    Size(u32),
}

fn error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// The name of an attribute on the host; `None` for one that the guest must not see. Also changes to the identity that
/// the access needs.
fn on_host(caller: &Caller, name: &CStr) -> io::Result<Option<CString>> {
    if name.to_bytes().starts_with(HIDDEN) {
        return Ok(None);
    }
    if name.to_bytes().starts_with(TRUSTED) {
        if !credentials::is_trusted(caller) {
            return Ok(None);
        }
        // The caller's capability was checked; permissions of the file do not apply.
        credentials::assume_own()?;
        return Ok(Some(CString::new([HIDDEN, name.to_bytes()].concat())?));
    }
    credentials::assume(caller)?;
    Ok(Some(name.to_owned()))
}

/// Sets an attribute, with these flags of setxattr(2).
///
/// # Errors
/// The error of setxattr(2).
pub fn set(inode: &Inode, caller: &Caller, name: &CStr, value: &[u8], flags: u32) -> io::Result<()> {
    let name = on_host(caller, name)?.ok_or_else(|| error(libc::EPERM))?;
    Ok(setxattr(inode.path(), name, value, XattrFlags::from_bits_retain(flags))?)
}

/// Reads an attribute into `room` bytes, or says how large it is if that is 0.
///
/// # Errors
/// The error of getxattr(2).
pub fn get(inode: &Inode, caller: &Caller, name: &CStr, room: u32) -> io::Result<Answer> {
    let name = on_host(caller, name)?.ok_or_else(|| error(libc::ENODATA))?;
    if room == 0 {
        let size = getxattr_query(inode.path(), name)?;
        return Ok(Answer::Size(u32::try_from(size).unwrap_or(u32::MAX)));
    }
    let mut value = vec![0; MAX_SIZE.min(room as usize)];
    let size = getxattr(inode.path(), name, &mut value)?;
    value.truncate(size);
    Ok(Answer::Bytes(value))
}

/// Removes an attribute.
///
/// # Errors
/// The error of removexattr(2).
pub fn remove(inode: &Inode, caller: &Caller, name: &CStr) -> io::Result<()> {
    let name = on_host(caller, name)?.ok_or_else(|| error(libc::ENODATA))?;
    Ok(removexattr(inode.path(), name)?)
}

/// The names of all attributes in `room` bytes, or how many bytes they take if that is 0.
///
/// # Errors
/// The error of listxattr(2); `ERANGE` if there is too little room.
pub fn list(inode: &Inode, caller: &Caller, room: u32) -> io::Result<Answer> {
    credentials::assume(caller)?;
    let mut names = vec![0; MAX_SIZE];
    let size = listxattr(inode.path(), &mut names)?;
    names.truncate(size);
    let names = for_guest(&names, credentials::is_trusted(caller));
    match room as usize {
        0 => Ok(Answer::Size(u32::try_from(names.len()).unwrap_or(u32::MAX))),
        room if names.len() > room => Err(error(libc::ERANGE)),
        _ => Ok(Answer::Bytes(names)),
    }
}

/// The part of the host's list that the guest may see.
fn for_guest(names: &[u8], trusted: bool) -> Vec<u8> {
    let mut shown = Vec::with_capacity(names.len());
    for name in names.split_inclusive(|byte| *byte == 0) {
        match name.strip_prefix(HIDDEN) {
            None if name.starts_with(TRUSTED) => {}
            None => shown.extend(name),
            Some(inner) if trusted && inner.starts_with(TRUSTED) => shown.extend(inner),
            Some(_) => {}
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_shows_the_trusted_ones_to_who_may_see_them() {
        let names = b"user.a\0user.pouch-vm.trusted.b\0user.pouch-vm.c\0trusted.of-host\0security.d\0";
        assert_eq!(for_guest(names, false), b"user.a\0security.d\0");
        assert_eq!(for_guest(names, true), b"user.a\0trusted.b\0security.d\0");
    }
}
