//! The files that the containers of a pod have in common. CRI makes them for its own sandboxes, and binds them in the
//! specification of each container. With the sandbox API it leaves both to the shim.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

use super::sandbox_config::{Dns, PodConfig};
use crate::sandbox::pod_shm;

/// The names of the files, which are in `/etc` of a container.
const HOSTNAME: &str = "hostname";
const HOSTS: &str = "hosts";
const RESOLV_CONF: &str = "resolv.conf";
/// Where they are in a container, and on the host.
const ETC: &str = "/etc";
/// The shared memory in a container.
const SHM: &str = "/dev/shm";

/// A file could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The host's.
    #[error("{path} of the host, which the pod's is a copy of, could not be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The pod's.
    #[error("{path} could not be written")]
    Write {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
}

/// The files of a pod.
#[derive(Debug)]
pub struct PodFiles(PathBuf);

impl PodFiles {
    /// Makes the files in this directory, which is the sandbox's bundle and goes with it.
    ///
    /// # Errors
    /// [`FilesError`] names the file.
    pub fn make(directory: &Path, config: &PodConfig) -> Result<Self, FilesError> {
        let write = |name: &str, text: &[u8]| {
            let path = directory.join(name);
            let written = fs::write(&path, text).and_then(|()| {
                // Whatever the umask: users of containers read them.
                fs::set_permissions(&path, Permissions::from_mode(0o644))
            });
            written.map_err(|source| FilesError::Write { path, source })
        };
        let hostname = match config.hostname.as_str() {
            "" => rustix::system::uname().nodename().to_string_lossy().into_owned(),
            name => name.to_owned(),
        };
        write(HOSTNAME, format!("{hostname}\n").as_bytes())?;
        write(HOSTS, &of_host(HOSTS)?)?;
        match &config.dns {
            Some(dns) => write(RESOLV_CONF, resolv_conf(dns).as_bytes())?,
            None => write(RESOLV_CONF, &of_host(RESOLV_CONF)?)?,
        }
        Ok(PodFiles(directory.to_owned()))
    }

    /// Binds the files in the specification of a container, unless it has others there.
    pub fn add_to(&self, spec: &mut Spec) {
        let read_only = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
        let access = if read_only { "ro" } else { "rw" };
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        for name in [HOSTNAME, HOSTS, RESOLV_CONF] {
            let target = Path::new(ETC).join(name);
            if !mounts.iter().any(|mount| is_at(mount, &target)) {
                mounts.push(bind(self.0.join(name), target, access));
            }
        }
        spec.set_mounts(Some(mounts));
    }
}

/// Gives a container the shared memory of its pod, in the guest's terms, instead of a tmpfs of its own. What else is
/// mounted there stays.
pub fn share_memory(spec: &mut Spec) {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let shared = bind(pod_shm(), SHM.into(), "rw");
    match mounts.iter_mut().find(|mount| is_at(mount, Path::new(SHM))) {
        Some(mount) if mount.typ().as_deref() == Some("tmpfs") => *mount = shared,
        Some(_) => {}
        None => mounts.push(shared),
    }
    spec.set_mounts(Some(mounts));
}

/// Whether this is mounted there. Components are compared, so a slash more or less does not count.
fn is_at(mount: &Mount, path: &Path) -> bool {
    Path::new("/").join(mount.destination()) == path
}

fn bind(source: PathBuf, target: PathBuf, access: &str) -> Mount {
    let mut mount = Mount::default();
    let options = ["rbind", "rprivate", access].map(str::to_owned).to_vec();
    mount.set_typ(Some("bind".to_owned())).set_source(Some(source)).set_destination(target);
    mount.set_options(Some(options));
    mount
}

fn of_host(name: &str) -> Result<Vec<u8>, FilesError> {
    let path = Path::new(ETC).join(name);
    fs::read(&path).map_err(|source| FilesError::Read { path, source })
}

/// The text of resolv.conf, as CRI writes it.
fn resolv_conf(dns: &Dns) -> String {
    let mut text = String::new();
    let mut add = |keyword: &str, values: &str| text.push_str(&format!("{keyword} {values}\n"));
    if !dns.searches.is_empty() {
        add("search", &dns.searches.join(" "));
    }
    dns.servers.iter().for_each(|server| add("nameserver", server));
    if !dns.options.is_empty() {
        add("options", &dns.options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(mounts: &str, read_only: bool) -> Spec {
        let text = format!(
            r#"{{"ociVersion": "1.2.0", "root": {{"path": "rootfs", "readonly": {read_only}}}, "mounts": [{mounts}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn at<'a>(spec: &'a Spec, path: &str) -> Vec<&'a Mount> {
        spec.mounts().iter().flatten().filter(|mount| mount.destination() == Path::new(path)).collect()
    }

    #[test]
    fn files_say_what_the_pod_says() {
        let directory = tempfile::tempdir().unwrap();
        let text = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        let owned = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect();
        let dns = Dns {
            servers: owned(&["10.0.0.1", "10.0.0.2"]),
            searches: owned(&["a.local", "local"]),
            options: owned(&["ndots:5"]),
        };
        let config = PodConfig { hostname: "pod".to_owned(), dns: Some(dns), ..PodConfig::default() };
        PodFiles::make(directory.path(), &config).unwrap();
        assert_eq!(text(HOSTNAME), "pod\n");
        let expected = "search a.local local\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n";
        assert_eq!(text(RESOLV_CONF), expected);
        assert_eq!(text(HOSTS), fs::read_to_string("/etc/hosts").unwrap());
        let mode = fs::metadata(directory.path().join(HOSTS)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        let config = PodConfig { dns: Some(Dns::default()), ..PodConfig::default() };
        PodFiles::make(directory.path(), &config).unwrap();
        assert_eq!(text(RESOLV_CONF), "");
        assert!(text(HOSTNAME).len() > 1, "it is the host's");
        let error = PodFiles::make(Path::new("/no/such"), &config).unwrap_err().to_string();
        assert!(error.contains("/no/such/hostname"), "{error}");
    }

    #[test]
    fn a_container_gets_the_files_that_it_has_no_others_for() {
        let files = PodFiles("/bundle".into());
        let own = r#"{"destination": "/etc/hosts/", "type": "bind", "source": "/kubelet/hosts"}"#;
        let mut with_own = spec(own, false);
        files.add_to(&mut with_own);
        assert_eq!(at(&with_own, "/etc/hosts")[0].source().as_deref(), Some(Path::new("/kubelet/hosts")));
        let resolver = at(&with_own, "/etc/resolv.conf")[0];
        assert_eq!(resolver.source().as_deref(), Some(Path::new("/bundle/resolv.conf")));
        assert!(resolver.options().as_ref().unwrap().contains(&"rw".to_owned()));
        assert_eq!(with_own.mounts().as_ref().unwrap().len(), 3);
        let mut read_only = spec("", true);
        files.add_to(&mut read_only);
        assert!(at(&read_only, "/etc/hosts")[0].options().as_ref().unwrap().contains(&"ro".to_owned()));
    }

    #[test]
    fn a_container_gets_the_shared_memory_of_its_pod() {
        let shared = |mounts: &str| {
            let mut spec = spec(mounts, false);
            share_memory(&mut spec);
            let [mount] = at(&spec, SHM)[..] else { panic!("{:?}", spec.mounts()) };
            mount.source().clone().unwrap()
        };
        let tmpfs = r#"{"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}"#;
        assert_eq!(shared(tmpfs), pod_shm());
        assert_eq!(shared(""), pod_shm());
        let volume = r#"{"destination": "/dev/shm", "type": "bind", "source": "/volume"}"#;
        assert_eq!(shared(volume), Path::new("/volume"));
    }
}
