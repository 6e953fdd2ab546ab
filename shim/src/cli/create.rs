//! `create`: a container whose process is not started yet.

use std::path::{Path, PathBuf};
use std::process::Child;

use clap::Args;

use super::{CliError, Global, Outcome, load_config, other, write_pid_file};
use crate::host::child::ChildStreams;
use crate::host::lifecycle;
use crate::host::protocol::Launch;
use crate::logging::LogFormat;

/// What `create` and `run` take.
#[derive(Args)]
pub struct CreateOptions {
    /// The bundle directory.
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Send the master of the container's pseudo-terminal to this UNIX socket.
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Write the PID of the sandbox host process, which represents the container, to this file.
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Ignored: the guest always uses pivot_root.
    #[arg(long)]
    pub no_pivot: bool,
    /// Ignored: keyrings are in the guest.
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Ignored: orphaned processes stay in the guest.
    #[arg(long)]
    pub no_subreaper: bool,
    /// Number of additional file descriptors to pass; only 0 is supported, because a VM cannot use them.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
}

#[derive(Args)]
pub struct Create {
    #[command(flatten)]
    options: CreateOptions,
    /// The container's ID.
    id: String,
}

impl CreateOptions {
    /// Creates the container; its host process is a child of this one.
    pub fn create(&self, global: &Global, id: &str) -> Result<Child, CliError> {
        refuse_descriptors(self.preserve_fds)?;
        let absolute = |path: &Path| std::path::absolute(path).map_err(other);
        let bundle = self.bundle.canonicalize().map_err(|error| {
            CliError::Other(format!("the bundle {} cannot be used: {error}", self.bundle.display()))
        })?;
        // An invalid ID is reported before anything is started.
        global.dir(id)?;
        let launch = Launch {
            id: id.to_owned(),
            root: absolute(&global.root)?,
            bundle,
            piped: false,
            pod: false,
            systemd_cgroup: global.uses_systemd(),
            console_socket: self.console_socket.as_deref().map(absolute).transpose()?,
            log: global.log.as_deref().map(absolute).transpose()?,
            log_json: global.log_format == LogFormat::Json,
            config: load_config()?,
        };
        let child = lifecycle::create(&launch, ChildStreams::inherited())?;
        if let Err(error) = write_pid_file(self.pid_file.as_ref(), child.id()) {
            super::delete::delete(global, id, true)?;
            return Err(error);
        }
        Ok(child)
    }
}

/// Refuses descriptors for the container.
pub fn refuse_descriptors(preserve_fds: u32) -> Result<(), CliError> {
    if preserve_fds == 0 {
        return Ok(());
    }
    let text = "--preserve-fds: descriptors of the host cannot be passed into a VM; pass what they are for as \
                standard streams, files or bind mounts";
    Err(CliError::Other(text.to_owned()))
}

impl Create {
    pub fn run(&self, global: &Global) -> Outcome {
        self.options.create(global, &self.id)?;
        Ok(0)
    }
}
