//! `events`: prints a container's counters, at intervals or once, and out-of-memory events.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::{CliError, Global, Outcome, other, print};
use crate::container::Status;
use crate::host::client::{ClientError, HostAddress, HostClient};
use crate::host::protocol::{Answer, Counters, Request};

/// How often the counter of out-of-memory kills is read.
const OOM_POLL: Duration = Duration::from_secs(1);
/// The minimum time between two reads.
const LEAST_POLL: Duration = Duration::from_millis(50);

#[derive(Args)]
pub struct Events {
    /// Print the resource usage once.
    #[arg(long)]
    stats: bool,
    /// Interval between two outputs: seconds, or a number with ms, s, m or h.
    #[arg(long, value_name = "TIME", default_value = "5s", allow_hyphen_values = true, value_parser = parse_interval)]
    interval: Duration,
    /// The container's ID.
    id: String,
}

/// "5", or a time as runc takes it: "5s", "500ms", "1m30s".
fn parse_interval(text: &str) -> Result<Duration, String> {
    let error = || format!("{text:?} is not a positive time such as 5s");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest[..digits].parse().map_err(|_| error())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let milliseconds = match &rest[..letters] {
            "ms" => 1,
            "s" => 1000,
            "" if digits == text.len() => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(error()),
        };
        total += Duration::from_millis(number.checked_mul(milliseconds).ok_or_else(error)?);
        rest = &rest[letters..];
    }
    if total.is_zero() { Err(error()) } else { Ok(total) }
}

impl Events {
    pub fn run(&self, global: &Global) -> Outcome {
        let (dir, state) = global.load(&self.id)?;
        if state.status == Status::Stopped {
            // runc's message, which engines parse.
            return Err(CliError::Other(format!("container not running: {}", self.id)));
        }
        let address = HostAddress::of(&dir);
        let host = address.connect()?;
        if self.stats {
            print(&format!("{}\n", counters(&host)?.stats));
            return Ok(0);
        }
        let ended = await_end(&address)?;
        self.follow(&host, &ended)
    }

    /// Prints until the container ends or the output is closed.
    fn follow(&self, host: &HostClient, ended: &Receiver<bool>) -> Outcome {
        let mut kills = 0;
        let mut next = Instant::now() + self.interval;
        loop {
            let pause = next.saturating_duration_since(Instant::now()).clamp(LEAST_POLL, OOM_POLL);
            match ended.recv_timeout(pause) {
                Ok(out_of_memory) => {
                    if out_of_memory && kills == 0 {
                        self.tell_out_of_memory()?;
                    }
                    return Ok(0);
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
                Err(RecvTimeoutError::Timeout) => {}
            }
            // It may be ending, which the other connection reports.
            let Ok(counters) = counters(host) else { continue };
            if counters.oom_kills > kills {
                kills = counters.oom_kills;
                self.tell_out_of_memory()?;
            }
            if Instant::now() >= next {
                next = Instant::now() + self.interval;
                say(&counters.stats.to_string())?;
            }
        }
    }

    fn tell_out_of_memory(&self) -> Result<(), CliError> {
        say(&json!({"type": "oom", "id": self.id}).to_string())
    }
}

/// Prints a line.
fn say(line: &str) -> Result<(), CliError> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{line}")
        .map_err(|error| CliError::Other(format!("the events cannot be written: {error}")))
}

fn counters(host: &HostClient) -> Result<Counters, CliError> {
    match host.ask(&Request::Stats)?.0 {
        Answer::Stats(counters) => Ok(counters),
        _ => Err(ClientError::Gone(None).into()),
    }
}

/// Reports when the container's process has ended, and whether an out-of-memory kill happened.
fn await_end(address: &HostAddress) -> Result<Receiver<bool>, CliError> {
    let host = address.connect()?;
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new()
        .name("end".to_owned())
        .spawn(move || {
            if let Ok((Answer::Ended { out_of_memory }, _)) = host.ask(&Request::AwaitEnd) {
                // The receiver may have been dropped.
                let _ = sender.send(out_of_memory);
            }
        })
        .map_err(other)?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_runc() {
        let parse = |text| parse_interval(text).ok().map(|time| time.as_millis());
        assert_eq!(parse("5"), Some(5000));
        assert_eq!(parse("5s"), Some(5000));
        assert_eq!(parse("1m30s"), Some(90_000));
        assert_eq!(parse("250ms"), Some(250));
        for bad in ["", "0", "0s", "s", "-1s", "5x", "5s3", "99999999999999999999h"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
