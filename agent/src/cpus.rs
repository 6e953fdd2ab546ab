//! Brings CPUs online: the VM starts with all CPUs described and one of them online.

use std::fs;
use std::io;

use ttrpc::proto::Code;

use crate::error::{Coded, RequestError};
use crate::procfs::cpu_list;

const DIRECTORY: &str = "/sys/devices/system/cpu";

/// Why CPUs could not be brought up.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// The request is invalid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A file of sysfs failed.
    #[error("cpus.count: cannot use {DIRECTORY}/{0}")]
    System(String, #[source] io::Error),
}

impl Coded for CpuError {
    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code(),
            Self::System(..) => Code::INTERNAL,
        }
    }
}

/// The CPUs that are online.
pub fn online() -> Result<Vec<u32>, CpuError> {
    list("online")
}

fn list(name: &str) -> Result<Vec<u32>, CpuError> {
    let system = |error| CpuError::System(name.to_owned(), error);
    let text = fs::read_to_string(format!("{DIRECTORY}/{name}")).map_err(system)?;
    cpu_list(&text).ok_or_else(|| system(io::Error::other("it is not a list of CPUs")))
}

/// Brings CPUs up or down until `count` are online; says how many are.
pub fn set_online(count: u32) -> Result<u32, CpuError> {
    let mut online = online()?;
    let present = list("present")?;
    if count == 0 || count as usize > present.len() {
        let reason = format!("must be 1 to {}, which is how many CPUs the VM has", present.len());
        return Err(RequestError::new("cpus.count", reason).into());
    }
    for cpu in &present {
        if online.len() < count as usize && !online.contains(cpu) {
            switch(*cpu, "1")?;
            online.push(*cpu);
        }
    }
    online.sort_unstable();
    // The boot CPU stays, so the highest go first.
    while online.len() > count as usize {
        let Some(cpu) = online.pop() else { break };
        switch(cpu, "0")?;
    }
    Ok(online.len() as u32)
}

fn switch(cpu: u32, value: &str) -> Result<(), CpuError> {
    let name = format!("cpu{cpu}/online");
    fs::write(format!("{DIRECTORY}/{name}"), value).map_err(|error| CpuError::System(name, error))
}
