//! The serial port, for debugging: what the guest writes goes to a file.

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

/// A 16550A whose output goes to `W`.
pub struct SerialPort<W: Write>(Serial<SerialInterrupt, NoEvents, W>);

impl<W: Write> SerialPort<W> {
    /// A serial port that interrupts through `interrupt` and writes to `output`.
    pub fn new(interrupt: EventFd, output: W) -> Self {
        SerialPort(Serial::new(SerialInterrupt(interrupt), output))
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
            // A full or closed output loses the guest's debugging text, and nothing else.
            let _ = self.0.write(offset, byte);
        }
    }
}
