//! Bundles: a root file system from the test images, and a configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Container, Invocation, Output};

/// Where the testbed has the images.
const IMAGES: &str = "/var/lib/pouch-test/images";
/// Where bundles are made: on the disk, as those of engines are.
pub const WORK: &str = "/var/tmp";

/// What their folders' names begin with.
pub const PREFIX: &str = "pouch-bundle-";

/// A bundle with an image's root file system; what a container writes goes to an overlay of its
/// own, as under a container engine.
pub struct Bundle {
    folder: TempDir,
    /// The configuration, written when a container is made of the bundle.
    pub spec: Value,
    mounted: bool,
}

/// A name that no other container has.
pub fn unique_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A file of an image, such as `rootfs.erofs`.
pub fn image_file(image: &str, name: &str) -> PathBuf {
    Path::new(IMAGES).join(image).join(name)
}

impl Bundle {
    /// A bundle of an image, with the configuration that the runtime's `spec` writes, but without a
    /// terminal and with a root file system that can be written.
    pub fn new(image: &str) -> Self {
        let mut bundle = Self::without_root();
        let lower = image_file(image, "rootfs");
        assert!(lower.is_dir(), "{} is not there: tests run in the testbed", lower.display());
        for part in ["upper", "work", "rootfs"] {
            fs::create_dir(bundle.path().join(part)).unwrap();
        }
        // The top of the tree is what the container sees as /, so it must look like the image's.
        let mode = fs::metadata(&lower).unwrap().permissions();
        fs::set_permissions(bundle.path().join("upper"), mode).unwrap();
        let path = bundle.path().display();
        let options = format!("lowerdir={},upperdir={path}/upper,workdir={path}/work", lower.display());
        let none: Option<&str> = None;
        let target = bundle.path().join("rootfs");
        mount(Some("overlay"), &target, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
        // A runtime may ask for private mounts only.
        mount(none, &target, none, MsFlags::MS_PRIVATE, none).unwrap();
        bundle.mounted = true;
        bundle
    }

    /// A bundle with no root file system yet.
    pub fn without_root() -> Self {
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(WORK).unwrap();
        Invocation::new(["spec"]).current_dir(folder.path()).run().ok();
        let text = fs::read_to_string(folder.path().join("config.json")).unwrap();
        let mut spec: Value = serde_json::from_str(&text).unwrap();
        spec["process"]["terminal"] = json!(false);
        spec["root"] = json!({"path": "rootfs", "readonly": false});
        Bundle { folder, spec, mounted: false }
    }

    /// The busybox image's bundle.
    pub fn busybox() -> Self {
        Self::new("busybox")
    }

    /// The debian image's bundle.
    pub fn debian() -> Self {
        Self::new("debian")
    }

    /// Sets the process's arguments.
    pub fn args<S: AsRef<str>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        let list: Vec<Value> = arguments.into_iter().map(|argument| json!(argument.as_ref())).collect();
        self.spec["process"]["args"] = Value::Array(list);
        self
    }

    /// Makes the process a shell with this script.
    pub fn sh(self, script: &str) -> Self {
        self.args(["/bin/sh", "-c", script])
    }

    /// Sets the part of the configuration at a JSON pointer; the members on the way are made.
    pub fn set(mut self, pointer: &str, value: Value) -> Self {
        let mut place = &mut self.spec;
        for name in pointer.trim_start_matches('/').split('/') {
            place = &mut place[name];
        }
        *place = value;
        self
    }

    /// Adds an element to the list at a JSON pointer.
    pub fn push(mut self, pointer: &str, value: Value) -> Self {
        match self.spec.pointer_mut(pointer) {
            Some(Value::Array(list)) => list.push(value),
            _ => return self.set(pointer, json!([value])),
        }
        self
    }

    /// Gives the process these capabilities, and no others.
    pub fn capable(self, names: &[&str]) -> Self {
        self.set("/process/capabilities", json!({"bounding": names, "permitted": names, "effective": names}))
    }

    /// Adds a mount.
    pub fn mount(self, destination: &str, kind: &str, source: impl AsRef<Path>, options: &[&str]) -> Self {
        let source = source.as_ref();
        self.push(
            "/mounts",
            json!({"destination": destination, "type": kind, "source": source, "options": options}),
        )
    }

    /// The bundle's folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The root file system as the host sees it.
    pub fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    /// Writes the configuration.
    pub fn write(&self) -> &Self {
        fs::write(self.path().join("config.json"), self.spec.to_string()).unwrap();
        self
    }

    /// An invocation of `run` with these further options.
    pub fn run_invocation(&self, options: &[&str]) -> Invocation {
        self.write();
        let mut arguments = vec!["run", "--bundle", self.path().to_str().unwrap()];
        arguments.extend(options);
        let id = unique_id();
        arguments.push(&id);
        Invocation::new(&arguments)
    }

    /// Runs a container to its end.
    pub fn run(&self) -> Output {
        self.run_invocation(&[]).run()
    }

    /// Creates a container.
    #[track_caller]
    pub fn create(self) -> Container {
        Container::create(self, &[])
    }

    /// Creates a container and starts it.
    #[track_caller]
    pub fn start(self) -> Container {
        let container = self.create();
        container.start();
        container
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily: what a failed test left behind must not keep the folder.
            let _ = umount2(&self.rootfs(), MntFlags::MNT_DETACH);
        }
    }
}
