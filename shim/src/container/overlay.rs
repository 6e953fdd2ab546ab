//! Overlays in a specification. The host mounts them, because their layers are on the host.
//!
//! Podman makes them of volumes with the option `O`, and of images (`--mount type=image`).

use std::path::Path;

use oci_spec::runtime::Mount;

use super::file_systems::FileSystems;
use super::guest_spec::{TranslateError, guest_path, unsupported};
use crate::sandbox::share::SharedPath;

/// Options of overlayfs that have a value (Documentation/filesystems/overlayfs.rst).
const WITH_VALUE: [&str; 11] = [
    "lowerdir",
    "upperdir",
    "workdir",
    "redirect_dir",
    "index",
    "metacopy",
    "xino",
    "nfs_export",
    "uuid",
    "verity",
    "fsync",
];
/// Those without one.
const WITHOUT_VALUE: [&str; 2] = ["userxattr", "volatile"];

/// Redirects an overlay to the share tree; returns the entry that it needs there.
pub(super) fn redirect(
    index: usize,
    mount: &mut Mount,
    systems: &mut FileSystems,
) -> Result<SharedPath, TranslateError> {
    let options = mount.options().clone().unwrap_or_default();
    let (own, kept): (Vec<String>, Vec<String>) =
        options.into_iter().flat_map(split).partition(|option| is_own(option));
    let layers = own.iter().find_map(|option| option.strip_prefix("lowerdir="));
    let Some(layers) = layers.filter(|layers| !layers.is_empty()) else {
        return Err(unsupported(format!("mounts[{index}].options"), "an overlay needs a lowerdir"));
    };
    let source = Path::new(layers).to_owned();
    let target = systems.new_directory().join(index.to_string());
    mount.set_typ(Some("bind".to_owned()));
    mount.set_source(Some(guest_path(&target)));
    let read_only = kept.iter().any(|option| option == "ro" || option == "rro");
    mount.set_options(Some([kept, vec!["rbind".to_owned()]].concat()));
    let overlay = Some(own.join(","));
    Ok(SharedPath { overlay, read_only, directory: true, ..SharedPath::new(source, target) })
}

/// Podman's options may be several in one text. A comma behind a backslash is part of a path.
fn split(text: String) -> Vec<String> {
    let mut parts = vec![String::new()];
    for part in text.split_inclusive(',') {
        let last = parts.len() - 1;
        match part.strip_suffix(',') {
            Some(whole) if !whole.ends_with('\\') => {
                parts[last].push_str(whole);
                parts.push(String::new());
            }
            _ => parts[last].push_str(part),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

fn is_own(option: &str) -> bool {
    let name = option.split_once('=').map(|(name, _)| name);
    name.map_or_else(|| WITHOUT_VALUE.contains(&option), |name| WITH_VALUE.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::MountBuilder;

    fn overlay(options: &[&str]) -> (Mount, Result<SharedPath, TranslateError>) {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let mount =
            MountBuilder::default().typ("overlay").source("overlay").destination("/o").options(options);
        let mut mount = mount.build().unwrap();
        let shared = redirect(3, &mut mount, &mut FileSystems::of(None));
        (mount, shared)
    }

    #[test]
    fn its_own_options_stay_on_the_host() {
        let (mount, shared) =
            overlay(&["lowerdir=/a:/b,upperdir=/u\\,1,workdir=/w,private", "volatile", "nodev"]);
        let shared = shared.unwrap();
        assert_eq!(shared.overlay.as_deref(), Some("lowerdir=/a:/b,upperdir=/u\\,1,workdir=/w,volatile"));
        assert!(!shared.read_only && shared.directory);
        assert_eq!(shared.target, Path::new("0/3"));
        assert_eq!(mount.typ().as_deref(), Some("bind"));
        assert_eq!(mount.options().clone().unwrap(), ["private", "nodev", "rbind"]);
        let (_, shared) = overlay(&["lowerdir=/a:/b", "ro"]);
        assert!(shared.unwrap().read_only);
    }

    #[test]
    fn without_layers_it_is_refused() {
        for options in [&["ro"][..], &["lowerdir="], &["upperdir=/u"]] {
            let error = overlay(options).1.unwrap_err().to_string();
            assert!(error.contains("mounts[3].options") && error.contains("lowerdir"), "{error}");
        }
    }
}
