//! Options that containerd, Docker and Kubernetes hand to a runtime.

use std::path::{Path, PathBuf};
use std::{fs, io};

use containerd_shim::api::Options as RuncOptions;
use containerd_shim::bootstrap::any_is;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::protobuf::{self, CodedInputStream, Message};

use crate::config::{Config, ConfigError};

/// The options of a runtime that is not runc's (containerd, `api/types/runtimeoptions/v1/api.proto`).
const RUNTIME_OPTIONS: &str = "runtimeoptions.v1.Options";
/// Tags of its members `config_path` and `config_body`: the number of the member, and 2 for a length and bytes.
const CONFIG_PATH: u32 = 2 << 3 | 2;
const CONFIG_BODY: u32 = 3 << 3 | 2;

/// Options cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// They are not what their type says.
    #[error("the runtime options {kind} are malformed")]
    Malformed {
        /// The type.
        kind: String,
        /// Where and why.
        source: protobuf::Error,
    },
    /// Nobody knows them.
    #[error(
        "runtime options of the type {0} are not known; use containerd.runc.v1.Options or {RUNTIME_OPTIONS}"
    )]
    Unknown(String),
    /// Those that were kept cannot be read.
    #[error("the runtime options in {path} could not be read")]
    Kept {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// The file in the bundle of a sandbox with the options of its runtime. containerd tells them when it starts the shim,
/// and not when it creates the sandbox.
const KEPT: &str = "runtime-options";

/// Keeps the options of the runtime in the bundle, for [`kept`].
///
/// # Errors
/// If the file cannot be written.
pub fn keep(bundle: &Path, any: &Any) -> io::Result<()> {
    fs::write(bundle.join(KEPT), any.write_to_bytes().map_err(io::Error::other)?)
}

/// Reads the options of the runtime that were kept in the bundle.
///
/// # Errors
/// [`OptionsError`] names the type, or the configuration.
pub fn kept(bundle: &Path) -> Result<Options, OptionsError> {
    let path = bundle.join(KEPT);
    match fs::read(&path) {
        Ok(bytes) => {
            let malformed = |source| OptionsError::Malformed { kind: path.display().to_string(), source };
            read(Some(&Any::parse_from_bytes(&bytes).map_err(malformed)?))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => read(None),
        Err(source) => Err(OptionsError::Kept { path, source }),
    }
}

/// Whether these are options of the runtime.
pub fn is_known(any: &Any) -> bool {
    any_is::<RuncOptions>(any) || is_runtime_options(any)
}

fn is_runtime_options(any: &Any) -> bool {
    any.type_url.rsplit('/').next() == Some(RUNTIME_OPTIONS)
}

/// What is asked for.
#[derive(Debug)]
pub struct Options {
    /// systemd is to make the cgroup.
    pub systemd_cgroup: bool,
    /// The configuration of pouch-vm.
    pub config: Config,
}

/// Reads the options of a request to create a container, and the configuration that they name.
///
/// # Errors
/// [`OptionsError`] names the type, or the configuration.
pub fn read(any: Option<&Any>) -> Result<Options, OptionsError> {
    let Some(any) = any.filter(|any| !any.type_url.is_empty()) else {
        return Ok(Options { systemd_cgroup: false, config: Config::load()? });
    };
    let malformed = |source| OptionsError::Malformed { kind: any.type_url.clone(), source };
    if any_is::<RuncOptions>(any) {
        let options = RuncOptions::parse_from_bytes(&any.value).map_err(malformed)?;
        return Ok(Options { systemd_cgroup: options.systemd_cgroup, config: Config::load()? });
    }
    if !is_runtime_options(any) {
        return Err(OptionsError::Unknown(any.type_url.clone()));
    }
    let (path, body) = runtime_options(&any.value).map_err(malformed)?;
    let config = match (path, body) {
        (_, Some(body)) => Config::parse(&body, Path::new("in the runtime options"))?,
        (Some(path), None) => Config::read(&path)?,
        (None, None) => Config::load()?,
    };
    Ok(Options { systemd_cgroup: false, config })
}

/// The path of the configuration, and its text.
fn runtime_options(bytes: &[u8]) -> protobuf::Result<(Option<PathBuf>, Option<String>)> {
    let (mut path, mut body) = (None, None);
    let mut input = CodedInputStream::from_bytes(bytes);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        match tag {
            CONFIG_PATH => {
                path = Some(input.read_string()?).filter(|path| !path.is_empty()).map(PathBuf::from)
            }
            CONFIG_BODY => body = Some(input.read_string()?).filter(|body| !body.is_empty()),
            _ => protobuf::rt::skip_field_for_tag(tag, &mut input)?,
        }
    }
    Ok((path, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(kind: &str, value: Vec<u8>) -> Any {
        Any { type_url: kind.to_owned(), value, ..Any::default() }
    }

    fn member(tag: u32, text: &str) -> Vec<u8> {
        [&[tag as u8, text.len() as u8], text.as_bytes()].concat()
    }

    #[test]
    fn runcs_options_name_the_maker_of_the_cgroup() {
        let options = RuncOptions { systemd_cgroup: true, ..RuncOptions::default() };
        let read = read(Some(&any("containerd.runc.v1.Options", options.write_to_bytes().unwrap()))).unwrap();
        assert!(read.systemd_cgroup);
    }

    #[test]
    fn a_configuration_is_named_or_given() {
        let kind = "type.googleapis.com/runtimeoptions.v1.Options";
        let of = |value| read(Some(&any(kind, value))).map(|options| options.config.default_memory_mib);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "default_memory_mib = 300").unwrap();
        let path = member(CONFIG_PATH, file.path().to_str().unwrap());
        assert_eq!(of([member(1 << 3 | 2, "some.Type"), path.clone()].concat()).unwrap(), 300);
        assert_eq!(of([path, member(CONFIG_BODY, "default_memory_mib = 400")].concat()).unwrap(), 400);
        assert!(of(member(CONFIG_PATH, "/no/such/file")).unwrap_err().to_string().contains("/no/such/file"));
        assert!(of(vec![CONFIG_PATH as u8, 9]).unwrap_err().to_string().contains("malformed"));
    }

    #[test]
    fn options_are_kept_for_a_sandbox() {
        let bundle = tempfile::tempdir().unwrap();
        assert!(!kept(bundle.path()).unwrap().systemd_cgroup);
        let options = RuncOptions { systemd_cgroup: true, ..RuncOptions::default() };
        let any = any("containerd.runc.v1.Options", options.write_to_bytes().unwrap());
        assert!(is_known(&any));
        keep(bundle.path(), &any).unwrap();
        assert!(kept(bundle.path()).unwrap().systemd_cgroup);
        std::fs::write(bundle.path().join(KEPT), [0xff]).unwrap();
        assert!(kept(bundle.path()).unwrap_err().to_string().contains(KEPT));
    }

    #[test]
    fn other_options_are_refused_by_name() {
        let error = read(Some(&any("some.Other", Vec::new()))).unwrap_err().to_string();
        assert!(error.contains("some.Other"), "{error}");
        assert!(read(None).is_ok());
    }
}
