//! Virtio devices that are attached to the VM, and detached, after boot.

use std::fs::{self, DirEntry};
use std::io;
use std::path::Path;

const DRIVER: &str = "/sys/bus/platform/drivers/virtio-mmio";

/// Takes a virtio device from its driver, and with it its network interface or disk. What was written to a disk reaches
/// the device first.
pub fn let_go(slot: u32) -> io::Result<()> {
    let name = format!("virtio-mmio.{slot}");
    match fs::write(Path::new(DRIVER).join("unbind"), &name) {
        // It has no driver.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => Ok(()),
        other => other,
    }
}

/// Has the driver look again at the registers of a virtio device, which were a placeholder's when
/// the kernel booted; returns the entry of sysfs for its device of this class, as `net` or `block`.
pub fn bring_to_life(slot: u32, class: &str) -> io::Result<DirEntry> {
    // As the kernel names the devices of its command line.
    let name = format!("virtio-mmio.{slot}");
    let device = Path::new("/sys/bus/platform/devices").join(&name);
    if !device.join("driver").exists() {
        fs::write(Path::new(DRIVER).join("bind"), &name)?;
    }
    for entry in fs::read_dir(&device)? {
        let Ok(mut found) = fs::read_dir(entry?.path().join(class)) else { continue };
        if let Some(found) = found.next() {
            return found;
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("it has no device of the class {class}")))
}
