//! The description of a pod that CRI passes with the sandbox API: the message `runtime.v1.PodSandboxConfig` (Kubernetes,
//! `cri-api/pkg/apis/runtime/v1/api.proto`). Only the fields that a sandbox needs are read.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;

use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::protobuf::{self, CodedInputStream};

/// The type of the message.
const TYPE: &str = "runtime.v1.PodSandboxConfig";

/// The description of a pod cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is none.
    #[error("options: the request has no {TYPE}, from which the sandbox is made")]
    Missing,
    /// It is of another type.
    #[error("options: the type {0} is not known; a sandbox is made from a {TYPE}")]
    Unknown(String),
    /// It is not what its type says.
    #[error("options: {field} of the {TYPE} is malformed")]
    Malformed {
        /// The field.
        field: &'static str,
        /// Where and why.
        source: protobuf::Error,
    },
}

/// The description of a pod.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PodConfig {
    /// Its name in Kubernetes.
    pub name: String,
    /// Its unique ID in Kubernetes.
    pub uid: String,
    /// Its namespace in Kubernetes.
    pub namespace: String,
    /// Its host name; empty for that of the host.
    pub hostname: String,
    /// Where the logs of its containers are.
    pub log_directory: String,
    /// The resolver's configuration; none for that of the host.
    pub dns: Option<Dns>,
    /// The cgroup that contains it; empty for none.
    pub cgroup_parent: String,
    /// Its kernel settings.
    pub sysctls: BTreeMap<String, String>,
    /// Its namespaces.
    pub namespaces: Namespaces,
    /// What its containers are limited to together.
    pub resources: Option<Resources>,
}

/// The configuration of the resolver.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Name servers.
    pub servers: Vec<String>,
    /// Domains in which short names are looked up.
    pub searches: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

/// The namespaces of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// The network is that of the host.
    pub host_network: bool,
    /// The processes are those of the host.
    pub host_pid: bool,
    /// The IPC namespace is that of the host.
    pub host_ipc: bool,
    /// It has a user namespace of its own.
    pub own_users: bool,
}

/// Limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// The period of the CPU quota in microseconds.
    pub cpu_period: i64,
    /// The CPU quota in microseconds.
    pub cpu_quota: i64,
    /// The weight for CPU time.
    pub cpu_shares: i64,
    /// The memory limit in bytes.
    pub memory: i64,
}

type Read<T> = Result<T, ConfigError>;

impl PodConfig {
    /// Reads the description of a pod from the options of a request.
    ///
    /// # Errors
    /// [`ConfigError`] names the type or the field.
    pub fn read(options: Option<&Any>) -> Read<Self> {
        let any = options.filter(|any| !any.type_url.is_empty()).ok_or(ConfigError::Missing)?;
        if any.type_url.rsplit('/').next() != Some(TYPE) {
            return Err(ConfigError::Unknown(any.type_url.clone()));
        }
        let mut config = PodConfig::default();
        fields(&any.value, "the message", |field, value| {
            match field {
                1 => config.read_metadata(value.bytes("metadata")?)?,
                2 => config.hostname = value.text("hostname")?,
                3 => config.log_directory = value.text("log_directory")?,
                4 => Dns::read(config.dns.get_or_insert_default(), value.bytes("dns_config")?)?,
                8 => config.read_linux(value.bytes("linux")?)?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(config)
    }

    fn read_metadata(&mut self, bytes: &[u8]) -> Read<()> {
        fields(bytes, "metadata", |field, value| {
            match field {
                1 => self.name = value.text("metadata.name")?,
                2 => self.uid = value.text("metadata.uid")?,
                3 => self.namespace = value.text("metadata.namespace")?,
                _ => {}
            }
            Ok(())
        })
    }

    fn read_linux(&mut self, bytes: &[u8]) -> Read<()> {
        fields(bytes, "linux", |field, value| {
            match field {
                1 => self.cgroup_parent = value.text("linux.cgroup_parent")?,
                2 => self.read_security(value.bytes("linux.security_context")?)?,
                3 => {
                    let (name, setting) = entry(value.bytes("linux.sysctls")?, "linux.sysctls")?;
                    self.sysctls.insert(name, setting);
                }
                5 => self.resources.get_or_insert_default().read(value.bytes("linux.resources")?)?,
                _ => {}
            }
            Ok(())
        })
    }

    fn read_security(&mut self, bytes: &[u8]) -> Read<()> {
        const NAME: &str = "linux.security_context.namespace_options";
        fields(bytes, "linux.security_context", |field, value| {
            if field == 1 { self.namespaces.read(value.bytes(NAME)?, NAME) } else { Ok(()) }
        })
    }
}

impl Dns {
    fn read(&mut self, bytes: &[u8]) -> Read<()> {
        fields(bytes, "dns_config", |field, value| {
            match field {
                1 => self.servers.push(value.text("dns_config.servers")?),
                2 => self.searches.push(value.text("dns_config.searches")?),
                3 => self.options.push(value.text("dns_config.options")?),
                _ => {}
            }
            Ok(())
        })
    }
}

impl Namespaces {
    fn read(&mut self, bytes: &[u8], name: &'static str) -> Read<()> {
        /// The modes of a namespace.
        const POD: i64 = 0;
        const NODE: i64 = 2;
        fields(bytes, name, |field, value| {
            match field {
                1 => self.host_network = value.number(name)? == NODE,
                2 => self.host_pid = value.number(name)? == NODE,
                3 => self.host_ipc = value.number(name)? == NODE,
                5 => {
                    // The mode is left out if it is the first, which is that of the pod.
                    let mut mode = POD;
                    fields(value.bytes(name)?, name, |field, value| {
                        if field == 1 {
                            mode = value.number(name)?;
                        }
                        Ok(())
                    })?;
                    self.own_users = mode == POD;
                }
                _ => {}
            }
            Ok(())
        })
    }
}

impl Resources {
    fn read(&mut self, bytes: &[u8]) -> Read<()> {
        const NAME: &str = "linux.resources";
        fields(bytes, NAME, |field, value| {
            match field {
                1 => self.cpu_period = value.number(NAME)?,
                2 => self.cpu_quota = value.number(NAME)?,
                3 => self.cpu_shares = value.number(NAME)?,
                4 => self.memory = value.number(NAME)?,
                _ => {}
            }
            Ok(())
        })
    }
}

/// An entry of a map of texts.
fn entry(bytes: &[u8], name: &'static str) -> Read<(String, String)> {
    let mut read = (String::new(), String::new());
    fields(bytes, name, |field, value| {
        match field {
            1 => read.0 = value.text(name)?,
            2 => read.1 = value.text(name)?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(read)
}

/// The value of a field. Those of other kinds are skipped.
enum Value {
    Number(u64),
    Bytes(Vec<u8>),
    Other,
}

impl Value {
    fn number(&self, field: &'static str) -> Read<i64> {
        match self {
            // Negative numbers have all 64 bits.
            Value::Number(number) => Ok(number.cast_signed()),
            _ => Err(wrong_kind(field)),
        }
    }

    fn bytes(&self, field: &'static str) -> Read<&[u8]> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(wrong_kind(field)),
        }
    }

    fn text(&self, field: &'static str) -> Read<String> {
        let text = std::str::from_utf8(self.bytes(field)?).map(str::to_owned);
        text.map_err(|error| malformed(field, error))
    }
}

fn wrong_kind(field: &'static str) -> ConfigError {
    malformed(field, "its value is of another kind")
}

fn malformed(field: &'static str, problem: impl Into<Box<dyn Error + Send + Sync>>) -> ConfigError {
    let source = io::Error::new(io::ErrorKind::InvalidData, problem);
    ConfigError::Malformed { field, source: source.into() }
}

/// Calls `take` with the number and the value of each field of a message. `name` is that of the message.
fn fields(bytes: &[u8], name: &'static str, mut take: impl FnMut(u32, &Value) -> Read<()>) -> Read<()> {
    let malformed = |source| ConfigError::Malformed { field: name, source };
    let mut input = CodedInputStream::from_bytes(bytes);
    while let Some(tag) = input.read_raw_tag_or_eof().map_err(malformed)? {
        // The number of the field, and the kind of its value.
        let value = match tag & 7 {
            0 => input.read_raw_varint64().map(Value::Number),
            2 => input.read_bytes().map(Value::Bytes),
            _ => protobuf::rt::skip_field_for_tag(tag, &mut input).map(|()| Value::Other),
        };
        take(tag >> 3, &value.map_err(malformed)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pouch_errors::chain;

    fn number(field: u8, value: u8) -> Vec<u8> {
        vec![field << 3, value]
    }

    fn bytes(field: u8, value: &[u8]) -> Vec<u8> {
        [&[field << 3 | 2, u8::try_from(value.len()).unwrap()], value].concat()
    }

    fn read(value: Vec<u8>) -> Result<PodConfig, String> {
        let type_url = format!("type.googleapis.com/{TYPE}");
        let any = Any { type_url, value, ..Any::default() };
        PodConfig::read(Some(&any)).map_err(|error| chain(&error))
    }

    fn linux(fields: &[Vec<u8>]) -> Result<PodConfig, String> {
        read(bytes(8, &fields.concat()))
    }

    #[test]
    fn the_fields_of_a_pod_are_read() {
        let metadata = [bytes(1, b"pod"), bytes(2, b"u"), bytes(3, b"ns"), number(4, 1)].concat();
        let dns = [bytes(1, b"10.0.0.1"), bytes(1, b"10.0.0.2"), bytes(2, b"local"), bytes(3, b"ndots:5")];
        let namespaces = [number(1, 0), number(2, 1), number(3, 2)].concat();
        let resources = [number(1, 100), number(2, 50), number(3, 2), number(4, 64), number(5, 1)].concat();
        let sysctl = [bytes(1, b"kernel.shm_rmid_forced"), bytes(2, b"1")].concat();
        let linux = [
            bytes(1, b"/kubepods/x"),
            bytes(2, &[bytes(1, &namespaces), number(6, 1)].concat()),
            bytes(3, &sysctl),
            bytes(5, &resources),
        ];
        let labels = bytes(6, &[bytes(1, b"a"), bytes(2, b"b")].concat());
        // A field of a later version, with 64 bits.
        let later = [vec![15 << 3 | 1], vec![0; 8]].concat();
        let all = [
            bytes(1, &metadata),
            bytes(2, b"host"),
            bytes(3, b"/var/log/pods"),
            bytes(4, &dns.concat()),
            labels,
            bytes(8, &linux.concat()),
            later,
        ];
        let config = read(all.concat()).unwrap();
        let expected = PodConfig {
            name: "pod".to_owned(),
            uid: "u".to_owned(),
            namespace: "ns".to_owned(),
            hostname: "host".to_owned(),
            log_directory: "/var/log/pods".to_owned(),
            dns: Some(Dns {
                servers: vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()],
                searches: vec!["local".to_owned()],
                options: vec!["ndots:5".to_owned()],
            }),
            cgroup_parent: "/kubepods/x".to_owned(),
            sysctls: [("kernel.shm_rmid_forced".to_owned(), "1".to_owned())].into(),
            namespaces: Namespaces { host_ipc: true, ..Namespaces::default() },
            resources: Some(Resources { cpu_period: 100, cpu_quota: 50, cpu_shares: 2, memory: 64 }),
        };
        assert_eq!(config, expected);
        assert_eq!(read(Vec::new()).unwrap(), PodConfig::default());
    }

    #[test]
    fn negative_numbers_and_user_namespaces_are_read() {
        let quota = [vec![2 << 3], vec![0xff; 9], vec![1]].concat();
        assert_eq!(linux(&[bytes(5, &quota)]).unwrap().resources.unwrap().cpu_quota, -1);
        let users = |options: &[u8]| {
            let security = bytes(1, &bytes(5, options));
            linux(&[bytes(2, &security)]).unwrap().namespaces.own_users
        };
        assert!(users(&[]), "the mode of the pod is the first");
        assert!(!users(&number(1, 2)));
        assert!(!linux(&[]).unwrap().namespaces.own_users);
    }

    #[test]
    fn what_is_malformed_is_named() {
        let refused = |result: Result<PodConfig, String>, name: &str| {
            let error = result.unwrap_err();
            assert!(error.contains(name), "{name}: {error}");
        };
        refused(read(vec![2 << 3 | 2, 200, 1]), "the message");
        refused(read(vec![0xff; 20]), "the message");
        refused(read(bytes(2, &[0xff])), "hostname");
        refused(read(number(2, 7)), "hostname");
        refused(read(bytes(4, &[1 << 3 | 2, 9])), "dns_config");
        refused(linux(&[number(1, 1)]), "linux.cgroup_parent");
        refused(linux(&[bytes(3, &[7])]), "linux.sysctls");
        refused(linux(&[bytes(5, &bytes(4, b"x"))]), "linux.resources");
        refused(linux(&[bytes(2, &bytes(1, &bytes(1, b"x")))]), "namespace_options");
        let other = Any { type_url: "some.Other".to_owned(), ..Any::default() };
        refused(PodConfig::read(Some(&other)).map_err(|error| chain(&error)), "some.Other");
        refused(PodConfig::read(None).map_err(|error| chain(&error)), TYPE);
    }
}
