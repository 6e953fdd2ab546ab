//! The configuration file, `/etc/pouch-vm/config.toml`. Every key has a default, so the file need not exist.
//! Unknown keys are errors. docs/user-guide.md documents each key.

use std::path::{Path, PathBuf};
use std::{fs, io};

use pouch_vmm_api::config::{MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};
use serde::{Deserialize, Serialize};

use crate::install::Installation;

/// Where the file is unless `POUCH_VM_CONFIG` names another.
pub const DEFAULT_PATH: &str = "/etc/pouch-vm/config.toml";

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// vCPUs of a VM whose container has no CPU limit; no more than the host has are used.
    pub default_vcpus: u8,
    /// MiB of memory for a container that has no memory limit.
    pub default_memory_mib: u32,
    /// The guest kernel.
    pub kernel: Option<PathBuf>,
    /// The guest root.
    pub guest_root: Option<PathBuf>,
    /// The VMM's binary.
    pub vmm: Option<PathBuf>,
    /// The KVM device.
    pub kvm: PathBuf,
    /// Let the host's kernel move the frames of network interfaces, where it has vhost-net.
    pub vhost_net: bool,
    /// Words added to the guest kernel's command line.
    pub kernel_arguments: Vec<String>,
    /// Keep the guest's serial console in the file `console.log` of the container's state
    /// directory. For debugging: it makes the guest slower.
    pub console: bool,
    /// How long a guest may take until its agent answers, in seconds.
    pub boot_timeout_seconds: u32,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            default_vcpus: 2,
            default_memory_mib: 1024,
            kernel: None,
            guest_root: None,
            vmm: None,
            kvm: PathBuf::from("/dev/kvm"),
            vhost_net: true,
            kernel_arguments: Vec::new(),
            console: false,
            boot_timeout_seconds: 60,
        }
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("the configuration {path} could not be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The file is malformed.
    #[error("the configuration {path} is not valid: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A number is outside its range.
    #[error("{key} in the configuration {path} is {value}, but must be from {least} to {most}")]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// The value.
        value: u32,
        /// The smallest value allowed.
        least: u32,
        /// The largest value allowed.
        most: u32,
    },
    /// The installation could not be found.
    #[error("the path of this program could not be determined")]
    Installation(#[from] io::Error),
}

impl Config {
    /// Reads the file that `POUCH_VM_CONFIG` names, which must exist then, or the default one.
    ///
    /// # Errors
    /// [`ConfigError`] names the file and the key.
    pub fn load() -> Result<Self, ConfigError> {
        match std::env::var_os("POUCH_VM_CONFIG") {
            Some(path) => Self::read(Path::new(&path)),
            None => match Self::read(Path::new(DEFAULT_PATH)) {
                Err(ConfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    Ok(Config::default())
                }
                other => other,
            },
        }
    }

    /// Reads a file that must exist.
    ///
    /// # Errors
    /// [`ConfigError`] names the file and the key.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Reads the text of a configuration; `path` names it in errors.
    ///
    /// # Errors
    /// [`ConfigError`] names the key.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Config = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        let ranges = [
            ("default_vcpus", config.default_vcpus.into(), 1, MAX_VCPUS.into()),
            ("default_memory_mib", config.default_memory_mib, MIN_MEMORY_MIB, MAX_MEMORY_MIB),
            ("boot_timeout_seconds", config.boot_timeout_seconds, 1, 3600),
        ];
        for (key, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err(ConfigError::OutOfRange { path: path.to_owned(), key, value, least, most });
            }
        }
        Ok(config)
    }

    /// The parts to use: those that the file names, else those beside this binary.
    ///
    /// # Errors
    /// [`ConfigError::Installation`] if this binary's own path is not known.
    pub fn installation(&self) -> Result<Installation, ConfigError> {
        let found = Installation::find()?;
        Ok(Installation {
            vmm: self.vmm.clone().unwrap_or(found.vmm),
            kernel: self.kernel.clone().unwrap_or(found.kernel),
            guest_root: self.guest_root.clone().unwrap_or(found.guest_root),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/c.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parse(""), Ok(Config::default()));
    }

    #[test]
    fn keys_are_taken_over() {
        let config = parse("default_vcpus = 4\nkvm = \"/dev/other\"\nconsole = true").unwrap();
        assert_eq!((config.default_vcpus, config.console), (4, true));
        assert_eq!(config.kvm, Path::new("/dev/other"));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        assert!(parse("default_vcpu = 4").unwrap_err().contains("default_vcpu"));
        assert!(
            parse("default_vcpus = 0")
                .unwrap_err()
                .contains("default_vcpus in the configuration /c.toml is 0")
        );
        assert!(parse("default_memory_mib = 8").unwrap_err().contains("from 64 to"));
        assert!(parse("console = 1").unwrap_err().contains("boolean"));
    }
}
