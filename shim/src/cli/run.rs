//! `run`: create, start, wait, delete.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::process::Child;

use clap::Args;

use super::create::CreateOptions;
use super::{CliError, Global, Outcome, delete, forward, other, start};
use crate::container::Bundle;
use crate::host::client::HostAddress;
use crate::streams::signals;
use crate::streams::terminal::RawTerminal;

#[derive(Args)]
pub struct Run {
    #[command(flatten)]
    options: CreateOptions,
    /// Return as soon as the container is running, and do not delete it.
    #[arg(short, long)]
    detach: bool,
    /// Do not delete the container when its process has ended.
    #[arg(long)]
    keep: bool,
    /// The container's ID.
    id: String,
}

impl Run {
    pub fn run(&self, global: &Global) -> Outcome {
        let own_terminal = self.wants_own_terminal()?;
        if self.detach && own_terminal {
            let text = "a detached container with a terminal needs --console-socket";
            return Err(CliError::Other(text.to_owned()));
        }
        signals::block();
        let child = self.options.create(global, &self.id)?;
        // From here on the container is always removed.
        let result = self.start_and_wait(global, child, own_terminal);
        if result.is_err() || !(self.detach || self.keep) {
            delete::delete(global, &self.id, true)?;
        }
        result
    }

    /// Whether the container uses the terminal of this process.
    fn wants_own_terminal(&self) -> Result<bool, CliError> {
        let bundle = Bundle::load(&self.options.bundle).map_err(other)?;
        Ok(self.options.console_socket.is_none() && bundle.process().terminal().unwrap_or(false))
    }

    fn start_and_wait(&self, global: &Global, mut child: Child, own_terminal: bool) -> Outcome {
        let dir = global.dir(&self.id)?;
        let raw =
            if own_terminal { Some(RawTerminal::enter(io::stdin().as_fd()).map_err(other)?) } else { None };
        start::start(global, &self.id)?;
        if self.detach {
            return Ok(0);
        }
        let console = if own_terminal {
            Some(File::from(io::stdin().as_fd().try_clone_to_owned().map_err(other)?))
        } else {
            None
        };
        forward::signals(HostAddress::of(&dir), None, console).map_err(other)?;
        let status = child.wait().map_err(other)?;
        drop(raw);
        if let Ok(state) = dir.load()
            && let Some(text) = state.vm_end
        {
            eprintln!("pouch-vm: error: container {}: {text}", self.id);
        }
        use std::os::unix::process::ExitStatusExt;
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255);
        // Statuses are from 0 to 255.
        Ok(code as u8)
    }
}
