//! The description from which a VM is built.

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::inherited::Inherited;
use crate::restricted::{self, Access};

/// Where the share is in the mount namespace of a VMM that is confined.
pub const SHARE_DIRECTORY: &str = "/share";
/// The most vCPUs that a VM may have: what the guest kernel is built for.
pub const MAX_VCPUS: u8 = 64;

/// The least memory, in MiB, in which the guest kernel and the agent start reliably.
pub const MIN_MEMORY_MIB: u32 = 64;

/// The most memory of a VM, in MiB (1 TiB): what the guest-physical layout is tested for.
pub const MAX_MEMORY_MIB: u32 = 1 << 20;

/// The most places for network interfaces.
pub const MAX_NETWORK_SLOTS: u8 = 8;

/// The most places for disks that come and go while the VM runs: what the other devices leave of the interrupt lines.
pub const MAX_DISK_SLOTS: u8 = 7;

/// The longest serial of a block device (virtio 1.2, section 5.2.6: 20 bytes).
pub const MAX_SERIAL_LENGTH: usize = 20;

/// Everything that a VM is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// vCPUs that the guest sees, 1 to [`MAX_VCPUS`]. Only the first is online after boot; the
    /// agent brings the others up.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// The guest kernel: an uncompressed ELF image with a PVH entry.
    pub kernel: FileSource,
    /// The guest's root: an EROFS image of a multiple of 2 MiB.
    pub root: FileSource,
    /// Words added to the end of the kernel command line.
    #[serde(default)]
    pub kernel_arguments: Vec<String>,
    /// Where the guest's serial port writes. Without it the guest has no serial port.
    #[serde(default)]
    pub console: Option<FileSource>,
    /// The KVM device; `/dev/kvm` unless a descriptor is passed.
    #[serde(default = "default_kvm")]
    pub kvm: FileSource,
    /// A directory that the guest sees as a virtio-fs file system, and to which the process
    /// confines itself.
    #[serde(default)]
    pub share: Option<ShareConfig>,
    /// Disks, in the order in which the guest finds them.
    #[serde(default)]
    pub blocks: Vec<BlockConfig>,
    /// Places for network interfaces that come while the VM runs, at most [`MAX_NETWORK_SLOTS`].
    #[serde(default)]
    pub network_slots: u8,
    /// Places for disks that come and go while the VM runs, at most [`MAX_DISK_SLOTS`].
    #[serde(default)]
    pub disk_slots: u8,
    /// The guest's context identifier on vsock, 3 or more.
    #[serde(default = "default_cid")]
    pub vsock_cid: u32,
}

/// A file that the VM needs: handed over as a descriptor, or opened before the process gives up
/// its authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FileSource {
    /// A descriptor that the process inherited.
    Fd {
        /// Its number.
        number: RawFd,
        /// Its name in messages: the path with which it was opened. The descriptor does not show it, because it
        /// has its own mount ([`restricted`]).
        name: String,
    },
    /// A path.
    Path(PathBuf),
}

/// A shared directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareConfig {
    /// The directory on the host.
    pub path: PathBuf,
    /// The name by which the guest mounts it, at most 36 bytes.
    pub tag: String,
}

/// A virtio-blk disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockConfig {
    /// An image file or a block device.
    pub file: FileSource,
    /// The name by which the guest finds it, at most [`MAX_SERIAL_LENGTH`] bytes of ASCII.
    pub serial: String,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
}

/// A virtio-blk disk that comes while the VM runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Its name, at most [`MAX_SERIAL_LENGTH`] bytes of ASCII.
    pub serial: String,
    /// Its size in bytes; what is left of a sector of 512 bytes at the end is not used.
    pub size: u64,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
}

/// A virtio-net interface, over a tap device that is opened with `IFF_TAP | IFF_NO_PI |
/// IFF_VNET_HDR`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// The guest's MAC address, such as `02:42:ac:11:00:02`.
    pub mac: MacAddress,
    /// The largest packet in bytes, without the Ethernet header.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
}

/// An Ethernet address, written as six hexadecimal pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl TryFrom<String> for MacAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut bytes = [0u8; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            *byte = pairs
                .next()
                .filter(|pair| pair.len() == 2)
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                .ok_or_else(|| format!("{text:?} is not a MAC address such as 02:42:ac:11:00:02"))?;
        }
        match pairs.next() {
            None => Ok(MacAddress(bytes)),
            Some(_) => Err(format!("{text:?} is not a MAC address such as 02:42:ac:11:00:02")),
        }
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> String {
        let [a, b, c, d, e, f] = mac.0;
        format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

fn default_kvm() -> FileSource {
    FileSource::Path(PathBuf::from("/dev/kvm"))
}

fn default_cid() -> u32 {
    3
}

fn default_mtu() -> u16 {
    1500
}

/// An invalid description.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is not a description.
    #[error("the VM description is not valid: {0}")]
    Parse(#[from] serde_json::Error),
    /// A number is outside its range.
    #[error("{field} is {value}, but must be from {least} to {most}")]
    OutOfRange {
        /// The field's name.
        field: &'static str,
        /// The value.
        value: u64,
        /// The smallest value allowed.
        least: u64,
        /// The largest value allowed.
        most: u64,
    },
    /// A text is not unique, short, or ASCII, as required.
    #[error("{field} {value:?} {problem}")]
    Text {
        /// The field's name.
        field: &'static str,
        /// The value.
        value: String,
        /// The problem.
        problem: &'static str,
    },
}

impl VmConfig {
    /// Reads a description from JSON and checks it.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that no VM can be built from.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let config: VmConfig = serde_json::from_str(text)?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that no VM can be built from.
    pub fn validate(&self) -> Result<(), ConfigError> {
        range("vcpus", u64::from(self.vcpus), 1, u64::from(MAX_VCPUS))?;
        let memory = u64::from(self.memory_mib);
        range("memory_mib", memory, u64::from(MIN_MEMORY_MIB), u64::from(MAX_MEMORY_MIB))?;
        range("vsock_cid", u64::from(self.vsock_cid), 3, u64::from(u32::MAX - 1))?;
        for word in &self.kernel_arguments {
            let printable = word.bytes().all(|byte| byte.is_ascii_graphic());
            text("kernel_arguments", word, printable && !word.is_empty(), "is not one printable ASCII word")?;
        }
        if let Some(share) = &self.share {
            let fits = !share.tag.is_empty() && share.tag.len() <= 36 && share.tag.is_ascii();
            text("share.tag", &share.tag, fits, "must have 1 to 36 ASCII characters")?;
        }
        for (index, block) in self.blocks.iter().enumerate() {
            let serial = &block.serial;
            text("blocks.serial", serial, is_serial(serial), SERIAL)?;
            let unique = self.blocks[..index].iter().all(|other| other.serial != *serial);
            text("blocks.serial", serial, unique, "is used by another disk")?;
        }
        range("disk_slots", self.disk_slots.into(), 0, MAX_DISK_SLOTS.into())?;
        range("network_slots", self.network_slots.into(), 0, MAX_NETWORK_SLOTS.into())
    }
}

impl DiskConfig {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that no disk can be made from.
    pub fn validate(&self) -> Result<(), ConfigError> {
        text("serial", &self.serial, is_serial(&self.serial), SERIAL)?;
        range("size", self.size, 0, i64::MAX as u64)
    }
}

/// What a serial must be.
const SERIAL: &str = "must have 1 to 20 ASCII characters";

fn is_serial(serial: &str) -> bool {
    !serial.is_empty() && serial.len() <= MAX_SERIAL_LENGTH && serial.is_ascii()
}

impl NetworkConfig {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that no interface can be made from.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mac = String::from(self.mac);
        text("mac", &mac, self.mac.0[0] & 1 == 0, "is a multicast address")?;
        range("mtu", u64::from(self.mtu), 68, 65_535)
    }
}

fn range(field: &'static str, value: u64, least: u64, most: u64) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(ConfigError::OutOfRange { field, value, least, most })
    }
}

fn text(field: &'static str, value: &str, good: bool, problem: &'static str) -> Result<(), ConfigError> {
    if good { Ok(()) } else { Err(ConfigError::Text { field, value: value.to_owned(), problem }) }
}

impl FileSource {
    /// Opens the path for no more than `access` ([`restricted::open`]), or claims the descriptor.
    ///
    /// # Errors
    /// What `open(2)` says, or `EBADF` for a descriptor that the process did not inherit or that another
    /// field has named.
    pub fn open(&self, inherited: &mut Inherited, access: Access) -> io::Result<File> {
        match self {
            FileSource::Path(path) => restricted::open(path, access),
            FileSource::Fd { number, .. } => inherited.claim(*number).map(File::from),
        }
    }
}

/// What messages call the file.
impl std::fmt::Display for FileSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FileSource::Path(path) => write!(f, "{}", path.display()),
            FileSource::Fd { name, .. } => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> serde_json::Value {
        serde_json::json!({
            "vcpus": 2, "memory_mib": 256,
            "kernel": {"path": "/k"}, "root": {"fd": {"number": 7, "name": "/r"}},
            "blocks": [{"file": {"path": "/d"}, "serial": "root"}],
            "network_slots": 8,
        })
    }

    fn error_of(change: impl FnOnce(&mut serde_json::Value)) -> String {
        let mut value = sample();
        change(&mut value);
        VmConfig::from_json(&value.to_string()).unwrap_err().to_string()
    }

    #[test]
    fn a_full_description_is_read() {
        let config = VmConfig::from_json(&sample().to_string()).unwrap();
        assert_eq!(config.root, FileSource::Fd { number: 7, name: "/r".to_owned() });
        assert_eq!(config.root.to_string(), "/r");
        assert_eq!(config.network_slots, 8);
        assert_eq!(config.kvm, FileSource::Path("/dev/kvm".into()));
    }

    #[test]
    fn each_bad_field_is_named() {
        assert!(error_of(|v| v["vcpus"] = 0.into()).contains("vcpus is 0"));
        assert!(error_of(|v| v["vcpus"] = 65.into()).contains("from 1 to 64"));
        assert!(error_of(|v| v["memory_mib"] = 16.into()).contains("memory_mib is 16"));
        assert!(error_of(|v| v["speed"] = 1.into()).contains("speed"));
        assert!(error_of(|v| v["network_slots"] = 9.into()).contains("network_slots is 9"));
        assert!(error_of(|v| v["disk_slots"] = 8.into()).contains("disk_slots is 8"));
        assert!(error_of(|v| v["blocks"][0]["serial"] = "".into()).contains("blocks.serial"));
        assert!(
            error_of(|v| v["kernel_arguments"] = serde_json::json!(["a b"])).contains("kernel_arguments")
        );
        let twice = |v: &mut serde_json::Value| {
            let disk = v["blocks"][0].clone();
            v["blocks"].as_array_mut().unwrap().push(disk);
        };
        assert!(error_of(twice).contains("used by another disk"));
    }

    #[test]
    fn a_network_interface_is_checked() {
        let parse = |text: &str| serde_json::from_str::<NetworkConfig>(text);
        let good = parse(r#"{"mac": "02:42:ac:11:00:02"}"#).unwrap();
        assert_eq!((good.mac.0, good.mtu), ([2, 0x42, 0xac, 0x11, 0, 2], 1500));
        good.validate().unwrap();
        assert!(parse(r#"{"mac": "02:42"}"#).unwrap_err().to_string().contains("MAC address"));
        let multicast = parse(r#"{"mac": "03:42:ac:11:00:02"}"#).unwrap();
        assert!(multicast.validate().unwrap_err().to_string().contains("multicast"));
        let small = NetworkConfig { mtu: 67, ..good };
        assert!(small.validate().unwrap_err().to_string().contains("mtu is 67"));
    }

    #[test]
    fn a_disk_that_comes_is_checked() {
        let disk: DiskConfig = serde_json::from_str(r#"{"serial": "disk-1", "size": 512}"#).unwrap();
        assert!(!disk.read_only);
        disk.validate().unwrap();
        for serial in ["", "more-than-20-characters", "\u{e9}"] {
            let bad = DiskConfig { serial: serial.to_owned(), ..disk.clone() };
            assert!(bad.validate().unwrap_err().to_string().contains("serial"), "{serial}");
        }
        let huge = DiskConfig { size: u64::MAX, ..disk };
        assert!(huge.validate().unwrap_err().to_string().contains("size is"));
    }

    #[test]
    fn a_descriptor_is_named_once() {
        use std::os::fd::{AsRawFd, OwnedFd};
        let file = OwnedFd::from(File::open("/dev/null").unwrap());
        let source = |number| FileSource::Fd { number, name: "/dev/null".to_owned() };
        let named = source(file.as_raw_fd());
        let mut inherited: Inherited = [file].into_iter().collect();
        named.open(&mut inherited, Access::Read).unwrap();
        for source in [named, source(-1)] {
            let error = source.open(&mut inherited, Access::Read).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        }
    }
}
