//! `kill`: sends a signal to the container's process.

use std::str::FromStr;

use clap::Args;
use nix::sys::signal::Signal;

use super::{CliError, Global, Outcome};
use crate::container::Status;
use crate::host::client::{ClientError, HostAddress};
use crate::host::protocol::Request;
use crate::host::server::not_running;

/// Real-time signals by number (signal(7)): from SIGRTMIN of the kernel to SIGRTMAX.
const REAL_TIME: std::ops::RangeInclusive<u32> = 32..=64;
/// What a shell and systemd call SIGRTMIN: glibc keeps two for itself.
const SIGRTMIN: u32 = 34;

#[derive(Args)]
pub struct Kill {
    /// Send the signal to all processes of the container.
    #[arg(short, long)]
    all: bool,
    /// The container's ID.
    id: String,
    /// Signal name, with or without SIG, or number.
    #[arg(default_value = "SIGTERM")]
    signal: String,
}

impl Kill {
    pub fn run(&self, global: &Global) -> Outcome {
        let signal = parse(&self.signal)
            .ok_or_else(|| CliError::Other(format!("{:?} is not a signal", self.signal)))?;
        let (dir, state) = global.load(&self.id)?;
        if state.status == Status::Stopped {
            return Err(not_running(&self.id).into());
        }
        let request = Request::Signal { exec_id: None, signal, all: self.all };
        let asked = HostAddress::of(&dir).connect().and_then(|host| host.ask(&request));
        match asked {
            Ok(_) => Ok(0),
            // It has a socket from its creation to its end.
            Err(ClientError::Connect { .. } | ClientError::Gone(_)) if state.status != Status::Creating => {
                Err(not_running(&self.id).into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The number of a signal given as "TERM", "SIGTERM", "15", "RTMIN+3".
pub fn parse(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse::<u32>() {
        return (1..=*REAL_TIME.end()).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset: u32 = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse().ok()? };
        return SIGRTMIN.checked_add(offset).filter(|number| REAL_TIME.contains(number));
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        let offset: u32 = if offset.is_empty() { 0 } else { offset.strip_prefix('-')?.parse().ok()? };
        return REAL_TIME.end().checked_sub(offset).filter(|number| REAL_TIME.contains(number));
    }
    Signal::from_str(&format!("SIG{name}")).ok().map(|signal| signal as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(parse("TERM"), Some(15));
        assert_eq!(parse("SIGKILL"), Some(9));
        assert_eq!(parse("sigint"), Some(2));
        assert_eq!(parse("9"), Some(9));
        assert_eq!(parse("SIGRTMIN+3"), Some(37));
        assert_eq!(parse("RTMAX-1"), Some(63));
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        for text in ["", "0", "65", "-1", "NOSUCH", "SIG", "RTMIN+99", "RTMAX-99", "RTMIN3"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
