//! The serial port, for debugging: output of the guest is written to a file.

use std::io::{self, Write};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;

/// The serial port's interrupt line.
pub struct SerialInterrupt(EventFd);

impl Trigger for SerialInterrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Bytes of output that are kept, so that a guest cannot fill the host's disk.
const KEPT: u64 = 16 << 20;

/// An output with a limit, beyond which writes fail.
struct Limited<W> {
    output: W,
    left: u64,
}

impl<W: Write> Write for Limited<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or(io::ErrorKind::StorageFull)?;
        self.output.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// A 16550A whose output goes to `W`, the first 16 MiB of it.
pub struct SerialPort<W: Write>(Serial<SerialInterrupt, NoEvents, Limited<W>>);

impl<W: Write> SerialPort<W> {
    /// A serial port that interrupts through `interrupt` and writes to `output`.
    pub fn new(interrupt: EventFd, output: W) -> Self {
        SerialPort(Serial::new(SerialInterrupt(interrupt), Limited { output, left: KEPT }))
    }
}

impl<W: Write + Send> BusDevice for SerialPort<W> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = self.0.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (&[byte], Ok(offset)) = (data, u8::try_from(offset)) {
            // If the output is full or closed, only the guest's debugging text is lost.
            let _ = self.0.write(offset, byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_write_for_ever() {
        let mut kept = Vec::new();
        let mut port = SerialPort::new(EventFd::new(0).unwrap(), &mut kept);
        for _ in 0..KEPT + 1000 {
            port.write(0, b"x");
        }
        drop(port);
        assert_eq!(kept.len() as u64, KEPT);
    }
}
