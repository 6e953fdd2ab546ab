//! Checks mount requests of the host and converts them to the kernel's terms.

use std::path::{Component, Path};

use nix::mount::MsFlags;
use pouch_protocol::GUEST_RUN_DIR;
use pouch_protocol::agent::Storage;

use crate::error::RequestError;

/// A storage as it will be mounted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub kind: Kind,
    pub source: String,
    pub target: String,
    pub flags: MsFlags,
    pub options: String,
}

/// The kinds of storage.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    FileSystem(String),
    Disk(String),
    Bind,
    Submount,
}

/// Checks a storage.
pub(super) fn plan(storage: &Storage) -> Result<Plan, RequestError> {
    let field = |name: &str| format!("storage.{name}");
    check_target(&storage.mount_point)?;
    if storage.source.contains('\0') || storage.source.len() > 4096 {
        return Err(RequestError::new(field("source"), "must have at most 4096 bytes and no NUL"));
    }
    let kind = match storage.driver.as_str() {
        "virtiofs" | "tmpfs" => Kind::FileSystem(storage.driver.clone()),
        "block" => match storage.filesystem.as_str() {
            "" => return Err(RequestError::new(field("filesystem"), "is missing")),
            name => Kind::Disk(name.to_owned()),
        },
        "bind" if Path::new(&storage.source).is_absolute() => Kind::Bind,
        "submount" => Kind::Submount,
        "bind" => return Err(RequestError::new(field("source"), "must be an absolute path")),
        other => return Err(RequestError::new(field("driver"), format!("{other:?} is not known"))),
    };
    let needs_source = kind != Kind::Submount && kind != Kind::FileSystem("tmpfs".to_owned());
    if storage.source.is_empty() && needs_source {
        return Err(RequestError::new(field("source"), "is missing"));
    }
    let (mut flags, options) = parse_options(&storage.options)?;
    if kind == Kind::Bind {
        if !options.is_empty() {
            return Err(RequestError::new(
                field("options"),
                format!("{options}: not an option of a bind mount"),
            ));
        }
        flags |= MsFlags::MS_BIND;
    }
    let source = if storage.source.is_empty() { "tmpfs".to_owned() } else { storage.source.clone() };
    Ok(Plan { kind, source, target: storage.mount_point.clone(), flags, options })
}

/// Only below the directory for the host's mounts, and not through `..`.
fn check_target(target: &str) -> Result<(), RequestError> {
    let path = Path::new(target);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !plain || target.contains('\0') || target.ends_with('/') || !path.starts_with(GUEST_RUN_DIR) {
        return Err(RequestError::new(
            "storage.mount_point",
            format!("must be a plain path below {GUEST_RUN_DIR}"),
        ));
    }
    for ours in ["", "containers", "state"] {
        if path == Path::new(GUEST_RUN_DIR).join(ours) {
            return Err(RequestError::new("storage.mount_point", "is a directory of the agent"));
        }
    }
    Ok(())
}

/// Splits mount(8)'s options into flags and what the file system gets.
fn parse_options(options: &[String]) -> Result<(MsFlags, String), RequestError> {
    let mut flags = MsFlags::empty();
    let mut rest: Vec<&str> = Vec::new();
    for option in options.iter().flat_map(|option| option.split(',')).filter(|option| !option.is_empty()) {
        let (flag, set) = match option {
            "ro" => (MsFlags::MS_RDONLY, true),
            "rw" => (MsFlags::MS_RDONLY, false),
            "nosuid" => (MsFlags::MS_NOSUID, true),
            "suid" => (MsFlags::MS_NOSUID, false),
            "nodev" => (MsFlags::MS_NODEV, true),
            "dev" => (MsFlags::MS_NODEV, false),
            "noexec" => (MsFlags::MS_NOEXEC, true),
            "exec" => (MsFlags::MS_NOEXEC, false),
            "sync" => (MsFlags::MS_SYNCHRONOUS, true),
            "async" => (MsFlags::MS_SYNCHRONOUS, false),
            "dirsync" => (MsFlags::MS_DIRSYNC, true),
            "noatime" => (MsFlags::MS_NOATIME, true),
            "atime" => (MsFlags::MS_NOATIME, false),
            "nodiratime" => (MsFlags::MS_NODIRATIME, true),
            "diratime" => (MsFlags::MS_NODIRATIME, false),
            "relatime" => (MsFlags::MS_RELATIME, true),
            "strictatime" => (MsFlags::MS_STRICTATIME, true),
            "lazytime" => (MsFlags::MS_LAZYTIME, true),
            "rbind" => (MsFlags::MS_REC, true),
            "bind" | "defaults" => continue,
            "shared" | "rshared" | "remount" | "move" => {
                return Err(RequestError::new("storage.options", format!("{option}: not supported")));
            }
            other => {
                rest.push(other);
                continue;
            }
        };
        flags.set(flag, set);
    }
    let text = rest.join(",");
    if text.contains('\0') || text.len() > 4000 {
        return Err(RequestError::new("storage.options", "must have at most 4000 bytes and no NUL"));
    }
    Ok((flags, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(driver: &str, source: &str, target: &str, options: &[&str]) -> Storage {
        Storage {
            driver: driver.to_owned(),
            source: source.to_owned(),
            mount_point: target.to_owned(),
            filesystem: "ext4".to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn options_are_flags_or_the_file_systems() {
        let planned =
            plan(&storage("block", "disk0", "/run/pouch/d", &["ro,noatime", "data=ordered"])).unwrap();
        assert_eq!(planned.flags, MsFlags::MS_RDONLY | MsFlags::MS_NOATIME);
        assert_eq!(planned.options, "data=ordered");
        assert_eq!(planned.kind, Kind::Disk("ext4".to_owned()));
    }

    #[test]
    fn bad_storages_are_named() {
        let refused = |storage: &Storage| plan(storage).unwrap_err().to_string();
        for target in [
            "",
            "/",
            "/etc",
            "/run/pouch",
            "/run/pouch/../x",
            "run/pouch/x",
            "/run/pouch/state",
            "/run/pouch/x/",
        ] {
            let text = refused(&storage("tmpfs", "", target, &[]));
            assert!(text.starts_with("storage.mount_point: "), "{target}: {text}");
        }
        assert!(refused(&storage("nfs", "x", "/run/pouch/x", &[])).starts_with("storage.driver: "));
        assert!(refused(&storage("bind", "x", "/run/pouch/x", &[])).starts_with("storage.source: "));
        assert!(
            refused(&storage("bind", "/x", "/run/pouch/x", &["size=1"])).starts_with("storage.options: ")
        );
        assert!(refused(&storage("virtiofs", "", "/run/pouch/x", &[])).starts_with("storage.source: "));
    }
}
