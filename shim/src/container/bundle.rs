//! A container's bundle: its directory with the specification.

use std::path::{Path, PathBuf};
use std::{fs, io};

use oci_spec::runtime::{Capability, Process, Root, Spec};
use serde_json::Value;

/// The specification's file name (OCI runtime specification, bundle.md).
pub const CONFIG_FILE: &str = "config.json";

/// Bytes of the longest specification that is read.
const MAX_CONFIG: u64 = 16 << 20;

/// A bundle, read and checked.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The directory, absolute.
    pub path: PathBuf,
    /// The specification.
    pub spec: Spec,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// A bundle from which no container can be created.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The directory cannot be found.
    #[error("the bundle {path} cannot be used")]
    Directory {
        /// The directory as it was given.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The specification cannot be read.
    #[error("the specification {path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// It is too long.
    #[error("the specification {0} is larger than 16 MiB")]
    TooLong(PathBuf),
    /// It is not a specification.
    #[error("the specification {path} is not valid: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A part that every container needs is missing.
    #[error("the specification {path} has no {field}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The part.
        field: &'static str,
    },
    /// Its version is not one that pouch-vm knows.
    #[error("ociVersion in {path} is {version:?}; pouch-vm supports 1.0.0 to 1.3.x")]
    Version {
        /// The file.
        path: PathBuf,
        /// The version.
        version: String,
    },
    /// The root file system is not there.
    #[error("root.path {root} cannot be used")]
    Root {
        /// The path.
        root: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
}

impl Bundle {
    /// Reads the bundle in `path` and checks what everything else relies on.
    ///
    /// # Errors
    /// [`BundleError`] names the file and the field.
    pub fn load(path: &Path) -> Result<Self, BundleError> {
        let directory = |source| BundleError::Directory { path: path.to_owned(), source };
        let absolute = path.canonicalize().map_err(directory)?;
        if !absolute.is_dir() {
            return Err(directory(io::ErrorKind::NotADirectory.into()));
        }
        let file = absolute.join(CONFIG_FILE);
        let read = |source| BundleError::Read { path: file.clone(), source };
        if fs::metadata(&file).map_err(read)?.len() > MAX_CONFIG {
            return Err(BundleError::TooLong(file));
        }
        let text = fs::read_to_string(&file).map_err(read)?;
        let parse = |source| BundleError::Parse { path: file.clone(), source };
        let mut value: Value = serde_json::from_str(&text).map_err(parse)?;
        let warnings = value.get_mut("process").map(drop_unknown_capabilities).unwrap_or_default();
        let spec: Spec = serde_json::from_value(value).map_err(parse)?;
        let bundle = Bundle { path: absolute, spec, warnings };
        bundle.check(&file)?;
        Ok(bundle)
    }

    fn check(&self, file: &Path) -> Result<(), BundleError> {
        let missing = |field| BundleError::Missing { path: file.to_owned(), field };
        if !version_known(self.spec.version()) {
            let version = self.spec.version().clone();
            return Err(BundleError::Version { path: file.to_owned(), version });
        }
        let process = self.spec.process().as_ref().ok_or_else(|| missing("process"))?;
        if process.args().as_ref().is_none_or(Vec::is_empty) {
            return Err(missing("process.args"));
        }
        self.spec.root().as_ref().ok_or_else(|| missing("root"))?;
        self.spec.linux().as_ref().ok_or_else(|| missing("linux"))?;
        let root = self.root_path();
        fs::metadata(&root).map_err(|source| BundleError::Root { root, source })?;
        Ok(())
    }

    /// The container's process.
    pub fn process(&self) -> Process {
        self.spec.process().clone().unwrap_or_default()
    }

    /// The root's description.
    pub fn root(&self) -> Root {
        self.spec.root().clone().unwrap_or_default()
    }

    /// The root file system: a directory, an image file or a block device.
    pub fn root_path(&self) -> PathBuf {
        self.path.join(self.root().path())
    }
}

/// Removes unknown names from the capabilities of a `process` object. The specification requires a warning for
/// these, not an error (config.md, "Linux Process").
pub fn drop_unknown_capabilities(process: &mut Value) -> Vec<String> {
    let mut warnings = Vec::new();
    let sets = process.get_mut("capabilities").and_then(Value::as_object_mut);
    for (set, list) in sets.into_iter().flatten() {
        let Some(list) = list.as_array_mut() else { continue };
        list.retain(|name| {
            let unknown = name.is_string() && serde_json::from_value::<Capability>(name.clone()).is_err();
            if unknown {
                warnings.push(format!("process.capabilities.{set}: {name} is not known and is ignored"));
            }
            !unknown
        });
    }
    warnings
}

/// 1.x up to 1.3, with whatever patch level and suffix.
fn version_known(version: &str) -> bool {
    let mut numbers = version.split(['.', '-', '+']).map(str::parse::<u32>);
    matches!((numbers.next(), numbers.next(), numbers.next()), (Some(Ok(1)), Some(Ok(0..=3)), Some(Ok(_))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(config: &str, rootfs: bool) -> Result<Bundle, String> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(CONFIG_FILE), config).unwrap();
        if rootfs {
            fs::create_dir(folder.path().join("rootfs")).unwrap();
        }
        Bundle::load(folder.path()).map_err(|error| pouch_errors::chain(&error))
    }

    const GOOD: &str = r#"{"ociVersion":"1.0.2","process":{"cwd":"/","args":["true"],
        "user":{"uid":0,"gid":0}},"root":{"path":"rootfs"},"linux":{}}"#;

    #[test]
    fn a_good_bundle_is_read() {
        assert_eq!(load(GOOD, true).unwrap().process().args().as_ref().unwrap(), &["true"]);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        assert!(load(GOOD, false).unwrap_err().contains("root.path"));
        assert!(load("nonsense", true).unwrap_err().contains("not valid"));
        assert!(load(&GOOD.replace("1.0.2", "2.0.0"), true).unwrap_err().contains("ociVersion"));
        assert!(load(&GOOD.replace(r#""args":["true"],"#, ""), true).unwrap_err().contains("process.args"));
        assert!(load(&GOOD.replace(r#","linux":{}"#, ""), true).unwrap_err().contains("no linux"));
        let rootless = GOOD.replace(r#","root":{"path":"rootfs"}"#, "");
        assert!(load(&rootless, true).unwrap_err().contains("no root"));
        let error = Bundle::load(Path::new("/no/such/bundle")).unwrap_err();
        assert!(pouch_errors::chain(&error).contains("/no/such/bundle"));
    }

    #[test]
    fn capabilities_that_are_not_known_are_left_out() {
        let mut process = serde_json::json!({"capabilities": {"bounding": ["CAP_KILL", "CAP_FANTASY"]}});
        let warnings = drop_unknown_capabilities(&mut process);
        assert_eq!(process["capabilities"]["bounding"], serde_json::json!(["CAP_KILL"]));
        assert!(
            warnings.len() == 1 && warnings[0].contains("process.capabilities.bounding: \"CAP_FANTASY\"")
        );
        assert!(drop_unknown_capabilities(&mut process).is_empty());
        assert!(drop_unknown_capabilities(&mut serde_json::json!([])).is_empty());
    }

    #[test]
    fn versions_up_to_1_3_are_known() {
        for version in ["1.0.0", "1.0.2-dev", "1.1.0+x", "1.2.1", "1.3.0"] {
            assert!(version_known(version), "{version}");
        }
        for version in ["", "1", "1.0", "0.9.0", "1.4.0", "2.0.0", "x.y.z"] {
            assert!(!version_known(version), "{version}");
        }
    }
}
