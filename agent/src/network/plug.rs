//! Network devices that were attached to the VM after boot.

use std::path::Path;
use std::{fs, io};

const DRIVER: &str = "/sys/bus/platform/drivers/virtio-mmio";

/// Takes a virtio device from its driver, and with it its network interface.
pub fn let_go(slot: u32) -> io::Result<()> {
    let name = format!("virtio-mmio.{slot}");
    match fs::write(Path::new(DRIVER).join("unbind"), &name) {
        // It has no driver.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

/// Has the driver look again at the registers of a virtio device, which were a placeholder's when
/// the kernel booted; returns the name of the network interface that it finds there.
pub fn bring_to_life(slot: u32) -> io::Result<String> {
    // As the kernel names the devices of its command line.
    let name = format!("virtio-mmio.{slot}");
    let device = Path::new("/sys/bus/platform/devices").join(&name);
    if !device.join("driver").exists() {
        fs::write(Path::new(DRIVER).join("bind"), &name)?;
    }
    for entry in fs::read_dir(&device)? {
        let Ok(mut interfaces) = fs::read_dir(entry?.path().join("net")) else { continue };
        if let Some(interface) = interfaces.next() {
            return Ok(interface?.file_name().to_string_lossy().into_owned());
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "it is not a network interface"))
}
