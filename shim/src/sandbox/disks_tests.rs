//! Which disks a VM has, for which containers.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// A VM that takes any disk.
#[derive(Default)]
struct Vm {
    next: AtomicU32,
    disks: Mutex<Vec<(u32, DiskConfig, File)>>,
}

impl Vm {
    fn devices(&self) -> Vec<u32> {
        self.disks.lock().unwrap().iter().map(|disk| disk.0).collect()
    }
}

impl Plugs for Vm {
    fn plug(&self, file: &File, config: DiskConfig) -> Result<u32, VmError> {
        let device = self.next.fetch_add(1, Ordering::Relaxed);
        self.disks.lock().unwrap().push((device, config, file.try_clone().unwrap()));
        Ok(device)
    }

    fn unplug(&self, device: u32) -> Result<(), VmError> {
        self.disks.lock().unwrap().retain(|disk| disk.0 != device);
        Ok(())
    }
}

fn disk(minor: u32, read_only: bool) -> HostDisk {
    HostDisk { path: format!("/dev/x{minor}").into(), major: 7, minor, read_only }
}

/// A device with its path, so that it can be opened more than once.
struct Device(tempfile::NamedTempFile);

impl Device {
    fn new() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1536).unwrap();
        Device(file)
    }

    fn open(&self, read_only: bool) -> OwnedFd {
        File::options().read(true).write(!read_only).open(self.0.path()).unwrap().into()
    }
}

#[test]
fn containers_share_a_device_until_the_last_one_goes() {
    let (vm, disks, device) = (Vm::default(), Disks::default(), Device::new());
    let first = disks.add(&vm, "a", &[disk(3, false)], [device.open(false)]).unwrap();
    assert_eq!((first[0].major, first[0].minor, first[0].slot), (7, 3, 0));
    for read_only in [false, true] {
        let again = disks.add(&vm, "b", &[disk(3, read_only)], [device.open(read_only)]).unwrap();
        assert_eq!(again[0].slot, 0);
    }
    assert_eq!(
        vm.disks.lock().unwrap()[0].1,
        DiskConfig { serial: "7-3".to_owned(), size: 1536, read_only: false }
    );
    assert!(disks.remove(&vm, "a").is_empty() && vm.devices() == [0] && disks.any_writable());
    assert!(disks.remove(&vm, "b").is_empty() && vm.devices().is_empty() && !disks.any_writable());
    assert!(disks.remove(&vm, "b").is_empty());
    // And again.
    assert_eq!(disks.add(&vm, "c", &[disk(3, false)], [device.open(false)]).unwrap()[0].slot, 1);
}

#[test]
fn a_device_has_one_writer_or_any_number_of_readers() {
    let device = Device::new();
    let pods = [(Vm::default(), Disks::default()), (Vm::default(), Disks::default())];
    let add = |pod: usize, read_only: bool| {
        let (vm, disks) = &pods[pod];
        disks.add(vm, "a", &[disk(3, read_only)], [device.open(read_only)]).map_err(|error| error.to_string())
    };
    add(0, true).unwrap();
    add(1, true).unwrap();
    let error = add(0, false).unwrap_err();
    assert!(error.starts_with("linux.devices /dev/x3, block device 7:3 is in use"), "{error}");
    // What failed took everything of its container along.
    assert!(pods[0].0.devices().is_empty());
    pods[1].1.remove(&pods[1].0, "a");
    add(0, false).unwrap();
    assert!(add(1, true).is_err());
    pods[0].1.remove(&pods[0].0, "a");
    add(1, true).unwrap();
}

#[test]
fn what_cannot_be_added_leaves_nothing() {
    let (vm, disks, device) = (Vm::default(), Disks::default(), Device::new());
    let error = disks.add(&vm, "a", &[disk(1, false), disk(2, true)], [device.open(false)]);
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with("the descriptor of linux.devices /dev/x2"), "{error}");
    assert!(vm.devices().is_empty());
    let wanted: Vec<HostDisk> = (0..8).map(|minor| disk(minor, true)).collect();
    let files = || wanted.iter().map(|_| device.open(true));
    let error = disks.add(&vm, "a", &wanted, files()).unwrap_err().to_string();
    assert!(
        error.contains("/dev/x7") && error.ends_with("a VM can have 7 block devices of the host at a time")
    );
    assert!(vm.devices().is_empty());
    disks.add(&vm, "a", &wanted[..7], files()).unwrap();
    assert_eq!(vm.devices().len(), 7);
}

#[test]
fn a_device_that_does_not_exist_is_named() {
    // The major number is one for local use, of which no driver has any.
    let mut missing = HostDisk { path: "/dev/xvda".into(), major: 240, minor: 1_000_000, read_only: false };
    let error = missing.open().unwrap_err().to_string();
    assert_eq!(error, "linux.devices /dev/xvda, block device 240:1000000 does not exist on the host");
    assert_eq!(node("MAJOR=7\nDEVNAME=mapper/x\n"), Some("/dev/mapper/x".into()));
    assert_eq!(node("MAJOR=7\n"), None);
}

#[test]
fn the_vmm_gets_a_descriptor_with_the_lock() {
    let (vm, disks, device) = (Vm::default(), Disks::default(), Device::new());
    disks.add(&vm, "a", &[disk(3, false)], [device.open(false)]).unwrap();
    // The host process has closed its own.
    let other = File::from(device.open(false));
    assert!(lock(&other, Access::Write).is_err());
    let held = vm.disks.lock().unwrap().pop().unwrap();
    assert!(held.2.as_fd().try_clone_to_owned().is_ok());
    drop(held);
    lock(&other, Access::Write).unwrap();
}
