//! Where files of the host go in the share tree: the mounts of one file system are together (`pouch_vmm_api::share`).

use std::path::PathBuf;

use crate::sandbox::later;

/// The directories of the share tree for the file systems of the host that a container uses.
#[derive(Default)]
pub(super) struct FileSystems {
    /// The device number of each directory that the container has to itself. An overlay that the host mounts later has
    /// no number yet.
    own: Vec<Option<u64>>,
    /// The container's slot, if it is in a pod.
    slot: Option<usize>,
}

impl FileSystems {
    /// Those of a container in this slot of a pod, or of the only container of a VM.
    pub fn of(slot: Option<usize>) -> Self {
        FileSystems { own: Vec::new(), slot }
    }

    /// The directory of mounts of the file system with this device number, from the share tree on.
    pub fn directory(&mut self, device: u64) -> PathBuf {
        if let Some(slot) = self.slot {
            return later::joint_directory(device, slot);
        }
        let known = self.own.iter().position(|other| *other == Some(device));
        known.map_or_else(|| self.add(Some(device)), |index| index.to_string().into())
    }

    /// The directory of a file system that the host mounts for the container.
    pub fn new_directory(&mut self) -> PathBuf {
        let name = self.add(None);
        self.own_directory().join(name)
    }

    /// Whether the container is in a pod.
    pub fn is_of_pod(&self) -> bool {
        self.slot.is_some()
    }

    /// Where what only this container has is.
    pub fn own_directory(&self) -> PathBuf {
        self.slot.map_or_else(PathBuf::new, later::directory)
    }

    fn add(&mut self, device: Option<u64>) -> PathBuf {
        self.own.push(device);
        (self.own.len() - 1).to_string().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_has_one_directory() {
        let mut systems = FileSystems::of(None);
        let found = [7, 9, 7].map(|device| systems.directory(device));
        assert_eq!(found, ["0", "1", "0"].map(PathBuf::from));
        assert_eq!(systems.new_directory(), PathBuf::from("2"));
        assert_eq!(systems.new_directory(), PathBuf::from("3"));
        assert_eq!(systems.directory(9), PathBuf::from("1"));
    }

    #[test]
    fn a_pod_has_one_directory_for_a_file_system() {
        let mut systems = FileSystems::of(Some(5));
        assert_eq!(systems.directory(0x801), PathBuf::from("containers/systems/8-1/5"));
        assert_eq!(systems.directory(0x12), PathBuf::from("containers/systems/0-18/5"));
        assert_eq!(systems.new_directory(), PathBuf::from("containers/5/0"));
        assert_eq!(systems.own_directory(), PathBuf::from("containers/5"));
    }
}
