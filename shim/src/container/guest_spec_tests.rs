//! Translation of specifications, field by field.

use serde_json::{Value, json};

use super::*;
use crate::container::pod_spec::of_pod;

fn base() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {"cwd": "/", "args": ["true"], "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs"},
        "linux": {
            "cgroupsPath": "/engine/c",
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "network", "path": "/run/netns/x"}],
        },
    })
}

fn translate_with(change: impl FnOnce(&mut Value, &Path)) -> Result<GuestSpec, String> {
    translated(change, |bundle| translate(bundle, None))
}

fn translated(
    change: impl FnOnce(&mut Value, &Path),
    translate: impl FnOnce(&Bundle) -> Result<GuestSpec, TranslateError>,
) -> Result<GuestSpec, String> {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("rootfs")).unwrap();
    let mut value = base();
    change(&mut value, folder.path());
    let spec = serde_json::from_value(value).unwrap();
    let bundle = Bundle { path: folder.path().to_owned(), spec, warnings: Vec::new() };
    translate(&bundle).map_err(|error| pouch_errors::chain(&error))
}

#[test]
fn root_network_and_cgroup_become_the_guests() {
    let guest = translate_with(|_, _| ()).unwrap();
    assert_eq!(guest.network_namespace, Some("/run/netns/x".into()));
    assert_eq!(guest.spec.root().as_ref().unwrap().path(), Path::new("/run/pouch/share/rootfs"));
    let linux = guest.spec.linux().as_ref().unwrap();
    assert!(linux.cgroups_path().is_none());
    let kinds: Vec<_> = linux.namespaces().iter().flatten().map(|n| n.typ()).collect();
    assert_eq!(kinds, [LinuxNamespaceType::Pid, LinuxNamespaceType::Mount]);
    assert_eq!(guest.shared[0].target, Path::new("rootfs"));
}

#[test]
fn binds_go_through_the_share_tree() {
    let guest = translate_with(|value, folder| {
        fs::write(folder.join("file"), "x").unwrap();
        value["mounts"] = json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/etc/file", "type": "bind", "source": "file", "options": ["rbind", "ro"]},
            {"destination": "/data", "type": "none", "source": "rootfs", "options": ["rbind"]},
        ]);
    })
    .unwrap();
    let mounts = guest.spec.mounts().as_ref().unwrap();
    let (file, data) = (&guest.shared[1], &guest.shared[2]);
    // A file's place shows in the container's mount table.
    let place = Path::new("0/1").join(file.source.strip_prefix("/").unwrap());
    assert_eq!(file.target, place);
    assert_eq!(guest.shared[0].target, Path::new("0/rootfs"), "it is of the same file system");
    assert_eq!(mounts[1].source(), &Some(Path::new("/run/pouch/share").join(place)));
    assert_eq!(data.target, Path::new("0/2"));
    assert!(file.read_only && !file.directory);
    assert!(!data.read_only && data.directory && data.source.ends_with("rootfs"));
}

#[test]
fn the_host_changes_the_owners_of_a_mount() {
    let ids = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    let guest = |mount: Value| {
        translate_with(|value, _| {
            value["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 7, "size": 1}]);
            value["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 8, "size": 1}]);
            value["mounts"] = json!([mount]);
        })
    };
    let mapped = guest(json!({
        "destination": "/d", "type": "bind", "source": "rootfs", "options": ["rbind", "ridmap"],
        "uidMappings": ids, "gidMappings": ids,
    }));
    let mapped = mapped.unwrap();
    let map = mapped.shared[1].idmap.as_ref().unwrap();
    assert!(map.recursive && map.users[0].outside == 100_000 && map.groups[0].count == 65_536);
    assert_eq!(mapped.shared[1].target, Path::new("0/mapped/0"));
    let mount = &mapped.spec.mounts().as_ref().unwrap()[0];
    assert!(mount.uid_mappings().is_none() && mount.options().as_deref().unwrap() == ["rbind"]);
    let own =
        guest(json!({"destination": "/d", "type": "bind", "source": "rootfs", "options": ["bind", "idmap"]}));
    let own = own.unwrap().shared[1].idmap.clone().unwrap();
    assert!(!own.recursive && own.users[0].outside == 7 && own.groups[0].outside == 8);
    let without = translate_with(|value, _| {
        value["mounts"] = json!([
            {"destination": "/d", "type": "bind", "source": "rootfs", "options": ["bind", "idmap"]}
        ]);
    });
    assert!(without.unwrap_err().contains("mounts[0].uidMappings"));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let error = |change: fn(&mut Value, &Path)| translate_with(change).unwrap_err();
    let missing = error(|value, _| {
        value["mounts"] = json!([{"destination": "/d", "type": "bind", "source": "/no/such"}]);
    });
    assert!(missing.contains("mounts[0].source /no/such"), "{missing}");
    let socket = error(|value, folder| {
        std::os::unix::net::UnixListener::bind(folder.join("s")).unwrap();
        value["mounts"] = json!([{"destination": "/s", "type": "bind", "source": "s"}]);
    });
    assert!(socket.contains("mounts[0].source") && socket.contains("is a socket"), "{socket}");
    let joined = error(|value, _| value["linux"]["namespaces"][0]["path"] = json!("/proc/1/ns/pid"));
    assert!(joined.contains("linux.namespaces pid"), "{joined}");
    let host_network = error(|value, _| {
        value["linux"]["namespaces"].as_array_mut().unwrap().pop();
    });
    for words in ["give it one of its own", "publish ports"] {
        assert!(host_network.contains(words), "{host_network}");
    }
    let host_pid = error(|value, _| {
        value["linux"]["namespaces"].as_array_mut().unwrap().remove(0);
    });
    assert!(host_pid.contains("no pid namespace"), "{host_pid}");
    let hook = error(|value, _| value["hooks"] = json!({"prestart": [{"path": "bin/true"}]}));
    assert!(hook.starts_with("hooks.prestart[0].path"), "{hook}");
}

#[test]
fn the_guest_gets_its_own_hooks_only() {
    let hooks = json!({"prestart": [{"path": "/a"}], "startContainer": [{"path": "/b"}]});
    let spec = translate_with(|value, _| value["hooks"] = hooks).unwrap().spec;
    assert_eq!(serde_json::to_value(spec.hooks()).unwrap(), json!({"startContainer": [{"path": "/b"}]}));
}

#[test]
fn images_are_told_by_their_superblocks() {
    let image = |bytes: &'static [u8], offset: usize, read_only: bool| {
        translate_with(move |value, folder| {
            let mut content = vec![0; 4096];
            content[offset..offset + bytes.len()].copy_from_slice(bytes);
            fs::write(folder.join("image"), content).unwrap();
            value["root"] = json!({"path": "image", "readonly": read_only});
        })
    };
    let filesystem = |guest: GuestSpec| match guest.root {
        RootSource::Disk { filesystem, .. } => filesystem,
        RootSource::Directory => panic!("a directory"),
    };
    assert_eq!(filesystem(image(b"\x53\xef", 1080, false).unwrap()), "ext4");
    assert_eq!(filesystem(image(b"\xe2\xe1\xf5\xe0", 1024, true).unwrap()), "erofs");
    assert!(image(b"\xe2\xe1\xf5\xe0", 1024, false).unwrap_err().contains("root.readonly"));
    assert!(image(b"", 0, false).unwrap_err().contains("no ext4 or EROFS"));
}

#[test]
fn labels_of_the_host_have_no_effect_and_that_is_said() {
    let guest =
        translate_with(|value, _| value["process"]["apparmorProfile"] = json!("docker-default")).unwrap();
    assert!(guest.spec.process().as_ref().unwrap().apparmor_profile().is_none());
    assert!(guest.warnings[0].contains("apparmorProfile"));
}

#[test]
fn a_network_namespace_has_an_absolute_path() {
    let error = translate_with(|spec, _| {
        for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "network" {
                namespace["path"] = json!("run/netns/x");
            }
        }
    });
    assert!(error.unwrap_err().contains("linux.namespaces network: its path must be absolute"));
}

#[test]
fn a_relative_destination_is_below_the_root() {
    let guest = translate_with(|spec, _| {
        spec["mounts"] = json!([
            {"destination": "a/b", "type": "tmpfs", "source": "x"},
            {"destination": "/c", "type": "tmpfs", "source": "x"},
        ]);
    });
    let spec = guest.unwrap().spec;
    let destinations: Vec<_> = spec.mounts().iter().flatten().map(|mount| mount.destination()).collect();
    assert_eq!(destinations, [Path::new("/a/b"), Path::new("/c")]);
}

#[test]
fn a_specification_that_the_agent_would_refuse_is_refused_early() {
    let with_variable = |bytes: usize| {
        let guest =
            translate_with(|spec, _| spec["process"]["env"] = json!([format!("A={}", "x".repeat(bytes))]));
        guest.unwrap().document().map_err(|error| error.to_string())
    };
    let short = with_variable(1 << 20).unwrap();
    assert!((1 << 20..2 << 20).contains(&short.len()), "{}", short.len());
    let error = with_variable(2 << 20).unwrap_err();
    assert!(error.starts_with("the specification has 20") && error.contains("process.env"), "{error}");
}

fn in_pod(namespaces: Value) -> Result<GuestSpec, String> {
    let neighbors = Neighbors { sandbox: 7, containers: [(9, "other".to_owned())].into() };
    let place = Place { slot: 3, pod: neighbors };
    let change = |spec: &mut Value, folder: &Path| {
        fs::write(folder.join("file"), "").unwrap();
        spec["linux"]["namespaces"] = namespaces;
        spec["hostname"] = json!("pod");
        spec["mounts"] = json!([
            {"destination": "/file", "type": "bind", "source": folder.join("file"), "options": ["bind"]},
            {"destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["bind"]},
        ]);
    };
    translated(change, |bundle| translate(bundle, Some(&place)))
}

#[test]
fn a_container_of_a_pod_shares_what_the_pod_has() {
    let path = |kind: &str| json!({"type": kind, "path": format!("/proc/7/ns/{kind}")});
    let joined = json!([{"type": "mount"}, {"type": "pid"}, path("network"), path("ipc"), path("uts")]);
    let guest = in_pod(joined).unwrap();
    let kinds = guest.spec.linux().as_ref().unwrap().namespaces().iter().flatten().map(|one| one.typ());
    assert_eq!(kinds.collect::<Vec<_>>(), [LinuxNamespaceType::Mount, LinuxNamespaceType::Pid]);
    assert!(guest.network_namespace.is_none() && guest.spec.hostname().is_none());
    let root = guest.spec.root().as_ref().unwrap().path().clone();
    let mut paths: Vec<_> =
        guest.spec.mounts().iter().flatten().map(|mount| mount.source().clone().unwrap()).collect();
    assert_eq!(paths.pop().unwrap(), Path::new("/run/pouch/shm"));
    paths.insert(0, root);
    let targets = guest.shared.iter().map(|entry| entry.target.clone());
    assert_eq!(
        paths,
        targets.clone().map(|target| Path::new("/run/pouch/share").join(target)).collect::<Vec<_>>()
    );
    // Both are of one file system, which has one directory for all containers of the pod.
    let parts: Vec<Vec<_>> =
        targets.map(|target| target.iter().map(|part| part.to_owned()).collect()).collect();
    assert_eq!(parts[0][..4], parts[1][..4]);
    let rest = [&parts[0][3..5], &parts[1][3..5]].map(|parts| parts.join("/".as_ref()));
    assert_eq!((parts[0][1].to_str(), rest), (Some("systems"), ["3/rootfs".into(), "3/0".into()]));
}

#[test]
fn a_container_of_a_pod_cannot_share_everything() {
    let pids = |path: &str| in_pod(json!([{"type": "mount"}, {"type": "pid", "path": path}]));
    for stranger in ["/proc/8/ns/pid", "/proc/7/ns/net", "/proc/self/ns/pid", "/run/pid"] {
        let error = pids(stranger).unwrap_err();
        assert!(error.starts_with(&format!("linux.namespaces pid {stranger}: ")), "{error}");
    }
    assert_eq!(pids("/proc/7/ns/pid").unwrap().pids, PidNamespace::Pod);
    assert_eq!(pids("/proc/9/ns/pid").unwrap().pids, PidNamespace::Of("other".to_owned()));
    let error = in_pod(json!([{"type": "mount"}])).unwrap_err();
    assert!(error.contains("no pid namespace"), "{error}");
}

#[test]
fn of_a_pods_sandbox_only_the_surroundings_count() {
    let of = |namespaces: Value| {
        let change = |spec: &mut Value, _: &Path| {
            spec["linux"]["namespaces"] = namespaces;
            spec["linux"]["sysctl"] = json!({"net.core.somaxconn": "9"});
            spec["hostname"] = json!("pod");
        };
        translated(change, of_pod)
    };
    let own =
        |kinds: &[&str]| Value::from(kinds.iter().map(|kind| json!({"type": kind})).collect::<Vec<_>>());
    let pod = of(own(&["mount", "pid", "ipc", "uts", "network"])).unwrap();
    assert_eq!(pod.spec.hostname().as_deref(), Some("pod"));
    let setup = PodSetup { shm_size: 64 << 20, sysctls: vec![("net.core.somaxconn".into(), "9".into())] };
    assert_eq!((pod.pod, pod.shared.len()), (Some(setup), 0));
    for (kinds, named) in [
        (&["mount", "pid", "network"][..], "hostIPC"),
        (&["mount", "ipc", "network"], "hostPID"),
        (&["mount", "pid", "ipc"], "cannot use the host's network"),
        (&["mount", "pid", "ipc", "network", "user"], "linux.namespaces user"),
    ] {
        let error = of(own(kinds)).unwrap_err();
        assert!(error.contains(named), "{error}");
    }
}
