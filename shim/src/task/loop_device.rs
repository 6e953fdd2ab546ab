//! Loop devices (loop(4)), for snapshotters whose root file systems are image files.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use linux_raw_sys::loop_device::{
    LO_FLAGS_AUTOCLEAR, LO_FLAGS_READ_ONLY, LOOP_CONFIGURE, LOOP_CTL_GET_FREE, loop_config,
};

/// How often another process may take the free device first.
const ATTEMPTS: usize = 100;

/// A loop device of an image file. When it is dropped, the device is freed with its last mount.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    _open: File,
}

impl LoopDevice {
    /// Attaches the file `image` to a free device.
    ///
    /// # Errors
    /// The kernel's error; `EBUSY` if other processes took each device that was free.
    pub fn attach(image: &Path, read_only: bool) -> io::Result<Self> {
        let image = OpenOptions::new().read(true).write(!read_only).open(image)?;
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        for _ in 0..ATTEMPTS {
            // SAFETY: the request has no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE.into()) };
            if number < 0 {
                return Err(io::Error::last_os_error());
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).write(!read_only).open(&path)?;
            match configure(&device, &image, read_only) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                configured => return configured.map(|()| LoopDevice { path, _open: device }),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }

    /// The device's node.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn configure(device: &File, image: &File, read_only: bool) -> io::Result<()> {
    // SAFETY: zeros are a valid value of this plain structure: the whole file, with the device's own block size.
    let mut config: loop_config = unsafe { std::mem::zeroed() };
    // A descriptor is never negative.
    config.fd = image.as_fd().as_raw_fd() as u32;
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR as u32;
    if read_only {
        config.info.lo_flags |= LO_FLAGS_READ_ONLY as u32;
    }
    // SAFETY: the request reads one `loop_config` at the pointer, which is live.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE.into(), &raw const config) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_there_is_no_device() {
        let error = LoopDevice::attach(Path::new("/no/such/image"), true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
