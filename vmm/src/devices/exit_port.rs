//! The I/O port through which a guest reports why it ends.
//!
//! A byte written to the first register ends the VM: 1 power off, 2 reset, 3 panic. Bytes written to the
//! second register are the message of a panic. The guest's side is kernel-config/0001-pouch-exit.patch.

use std::sync::Arc;

use pouch_vmm_api::exit::ExitReason;

use crate::bus::BusDevice;
use crate::exit_signal::ExitSignal;

const REASON: u64 = 0;
const MESSAGE: u64 = 1;

const POWER_OFF: u8 = 1;
const RESET: u8 = 2;
const PANIC: u8 = 3;

/// Bytes of a message that are kept.
const MESSAGE_MAX: usize = 240;

/// The exit port.
pub struct ExitPort {
    signal: Arc<ExitSignal>,
    message: String,
}

impl ExitPort {
    /// An exit port that ends the VM through `signal`.
    pub fn new(signal: Arc<ExitSignal>) -> Self {
        ExitPort { signal, message: String::new() }
    }
}

impl BusDevice for ExitPort {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, offset: u64, data: &[u8]) {
        let [byte] = *data else { return };
        match (offset, byte) {
            (REASON, POWER_OFF) => self.signal.end(ExitReason::PowerOff),
            (REASON, RESET) => self.signal.end(ExitReason::Reset),
            (REASON, PANIC) => {
                let message = self.message.trim_end().to_owned();
                self.signal.end(ExitReason::Panic { message });
            }
            // The text ends up in logs and terminals: printable characters only.
            (MESSAGE, b' '..=b'~') if self.message.len() < MESSAGE_MAX => self.message.push(byte.into()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason_after(writes: &[(u64, &[u8])]) -> Option<ExitReason> {
        let signal = Arc::new(ExitSignal::new().unwrap());
        let mut port = ExitPort::new(signal.clone());
        for (offset, data) in writes {
            port.write(*offset, data);
        }
        signal.reason()
    }

    #[test]
    fn each_reason_is_told() {
        assert_eq!(reason_after(&[(0, &[1])]), Some(ExitReason::PowerOff));
        assert_eq!(reason_after(&[(0, &[2])]), Some(ExitReason::Reset));
        assert_eq!(reason_after(&[(0, &[9]), (1, b"x"), (0, &[1, 1])]), None);
    }

    #[test]
    fn a_panic_has_a_bounded_printable_message() {
        let mut writes: Vec<(u64, &[u8])> = vec![(1, b"\x1b"), (1, b"O"), (1, b"\n"), (1, b"k")];
        writes.extend(std::iter::repeat_n((1, &b"!"[..]), 1000));
        writes.push((0, &[3]));
        let Some(ExitReason::Panic { message }) = reason_after(&writes) else { panic!("no panic") };
        assert!(message.starts_with("Ok!") && message.len() == MESSAGE_MAX);
    }
}
