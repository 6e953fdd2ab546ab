//! Paths of the installed files.

use std::path::{Path, PathBuf};
use std::{env, io};

/// The installed files that pouch-vm needs, without its own binary.
#[derive(Clone, Debug)]
pub struct Installation {
    /// The VMM's binary.
    pub vmm: PathBuf,
    /// The guest kernel.
    pub kernel: PathBuf,
    /// The guest root.
    pub guest_root: PathBuf,
}

impl Installation {
    /// The files relative to this binary: `PREFIX/bin/pouch-vm` uses `PREFIX/libexec/pouch-vm` and
    /// `PREFIX/share/pouch-vm`.
    ///
    /// # Errors
    /// The path of this binary cannot be found out.
    pub fn find() -> io::Result<Self> {
        Ok(Self::below(&prefix_of(&env::current_exe()?)))
    }

    fn below(prefix: &Path) -> Self {
        Installation {
            vmm: prefix.join("libexec/pouch-vm/pouch-vmm"),
            kernel: prefix.join("share/pouch-vm/vmlinux"),
            guest_root: prefix.join("share/pouch-vm/guest-root.erofs"),
        }
    }
}

fn prefix_of(binary: &Path) -> PathBuf {
    binary.parent().and_then(Path::parent).unwrap_or(Path::new("/usr/local")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_lie_beside_the_binary() {
        let parts = Installation::below(&prefix_of(Path::new("/opt/pouch/bin/pouch-vm")));
        assert_eq!(parts.vmm, Path::new("/opt/pouch/libexec/pouch-vm/pouch-vmm"));
        assert_eq!(parts.kernel, Path::new("/opt/pouch/share/pouch-vm/vmlinux"));
        assert_eq!(prefix_of(Path::new("pouch-vm")), Path::new("/usr/local"));
    }
}
