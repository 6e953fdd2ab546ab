//! Where files of the host go in the share tree: the mounts of one file system are together (`pouch_vmm_api::share`).

use std::path::PathBuf;

/// The directories of the share tree for the file systems of the host that a container uses, by device number. An
/// overlay that the host mounts later has no number yet.
#[derive(Default)]
pub(super) struct FileSystems(Vec<Option<u64>>);

impl FileSystems {
    /// The directory of mounts of the file system with this device number.
    pub fn directory(&mut self, device: u64) -> PathBuf {
        let known = self.0.iter().position(|other| *other == Some(device));
        known.map_or_else(|| self.add(Some(device)), |index| index.to_string().into())
    }

    /// The directory of a file system that the host mounts for the container.
    pub fn new_directory(&mut self) -> PathBuf {
        self.add(None)
    }

    fn add(&mut self, device: Option<u64>) -> PathBuf {
        self.0.push(device);
        (self.0.len() - 1).to_string().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_has_one_directory() {
        let mut systems = FileSystems::default();
        let found = [7, 9, 7].map(|device| systems.directory(device));
        assert_eq!(found, ["0", "1", "0"].map(PathBuf::from));
        assert_eq!(systems.new_directory(), PathBuf::from("2"));
        assert_eq!(systems.new_directory(), PathBuf::from("3"));
        assert_eq!(systems.directory(9), PathBuf::from("1"));
    }
}
