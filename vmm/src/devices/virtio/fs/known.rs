//! A bound on how many files the guest keeps in mind.
//!
//! The server holds a descriptor for each file that the guest knows, and with it some 3 KiB of the
//! host kernel's memory. By itself a guest forgets files only when its own memory is short, so it
//! would hold a multiple of that memory on the host. Beyond the bound it is told of files for no
//! time at all, and Linux forgets such a file as soon as nothing uses it (`fuse_dentry_delete` in
//! fs/fuse/dir.c). A guest that does not is stopped by the VMM's limit of open files.

use std::collections::HashMap;
use std::time::Duration;

use fuse_backend_rs::api::filesystem::Entry;

/// The files that the guest knows.
pub struct Known {
    /// How many it is to keep.
    bound: usize,
    /// By their numbers, how often it was told of each: what FUSE calls the lookup count.
    told: HashMap<u64, u64>,
}

impl Known {
    /// None; of more than `bound` files the guest keeps only those that it uses.
    pub fn new(bound: usize) -> Self {
        Known { bound, told: HashMap::new() }
    }

    /// Counts an entry that the guest is told of.
    pub fn told(&mut self, mut entry: Entry) -> Entry {
        let count = self.told.entry(entry.inode).or_default();
        *count = count.saturating_add(1);
        if self.told.len() > self.bound {
            entry.entry_timeout = Duration::ZERO;
        }
        entry
    }

    /// Takes back that the guest was told of a file so often; true if it does not know the file any more.
    pub fn forgotten(&mut self, inode: u64, count: u64) -> bool {
        let Some(told) = self.told.get_mut(&inode) else { return false };
        *told = told.saturating_sub(count);
        let gone = *told == 0;
        if gone {
            self.told.remove(&inode);
        }
        gone
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.told.clear();
    }

    /// How many there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.told.len()
    }
}
