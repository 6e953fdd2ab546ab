//! Loads kernel modules when the guest kernel requests them.
//!
//! The kernel runs `/init` for all user-space helpers (CONFIG_STATIC_USERMODEHELPER), with the helper's name
//! as `argv[0]`. Only modprobe is supported. Modules and depmod's indexes are in the guest root, and the
//! kernel loads only modules that were signed when it was built.

use std::collections::HashSet;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// The name (`argv[0]`) that the kernel calls its helper for modules by (CONFIG_MODPROBE_PATH).
pub const NAME: &str = "/sbin/modprobe";

/// Where `rootfs/build.sh` puts the modules.
const DIRECTORY: &str = "/lib/modules";

/// Runs one request of the kernel: `modprobe -q -- ALIAS`. Nobody reads what it says, so it logs to
/// the kernel's log.
pub fn main(args: impl Iterator<Item = OsString>) -> i32 {
    let Some(alias) = args.last().as_deref().and_then(OsStr::to_str).map(str::to_owned) else { return 2 };
    let index = match Index::read(Path::new(DIRECTORY)) {
        Ok(index) => index,
        // A guest root without modules.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return 1,
        Err(error) => return fail(&format!("the lists of modules in {DIRECTORY} cannot be read: {error}")),
    };
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let mut status = 1;
    for module in index.find(&alias) {
        match load(&index, module, &command_line) {
            Ok(()) => status = 0,
            // One of several that offer the same, for a processor that this one is not.
            Err(Errno::ENODEV) => {}
            Err(error) => status = fail(&format!("the module {module} cannot be loaded: {error}")),
        }
    }
    status
}

/// Whether a module has the device with this number, and is loaded when its node is opened.
pub fn offer(block: bool, major: i64, minor: i64) -> bool {
    let kind = if block { "block" } else { "char" };
    let alias = format!("{kind}-major-{major}-{minor}");
    Index::read(Path::new(DIRECTORY)).is_ok_and(|index| !index.find(&alias).is_empty())
}

/// Makes the device nodes of modules that are loaded when their node is opened, in `/dev`.
pub fn make_device_nodes() {
    let list = fs::read_to_string(Path::new(DIRECTORY).join("modules.devname")).unwrap_or_default();
    for node in list.lines().filter_map(DeviceNode::parse) {
        let path = Path::new("/dev").join(node.name);
        if let Some(parent) = path.parent() {
            let _ = fs::create_dir_all(parent);
        }
        match mknod(&path, node.kind, Mode::from_bits_truncate(0o600), node.number) {
            // The driver is there already.
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => log::warn!("cannot make {}: {error}", path.display()),
        }
    }
}

/// A line `MODULE NAME cMAJOR:MINOR` of depmod's modules.devname.
#[derive(Debug, PartialEq, Eq)]
struct DeviceNode<'a> {
    name: &'a str,
    kind: SFlag,
    number: u64,
}

impl<'a> DeviceNode<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (_module, name, device) = (words.next()?, words.next()?, words.next()?);
        let (kind, numbers) = match device.split_at_checked(1)? {
            ("c", numbers) => (SFlag::S_IFCHR, numbers),
            ("b", numbers) => (SFlag::S_IFBLK, numbers),
            _ => return None,
        };
        let (major, minor) = numbers.split_once(':')?;
        let number = makedev(major.parse().ok()?, minor.parse().ok()?);
        Some(DeviceNode { name, kind, number })
    }
}

fn fail(message: &str) -> i32 {
    // If the log cannot be written, only the status reports the error.
    let _ = fs::write("/dev/kmsg", format!("<4>pouch-agent: {message}\n"));
    1
}

/// Loads a module after those that it needs.
fn load(index: &Index, module: &str, command_line: &str) -> nix::Result<()> {
    for needed in index.order(module) {
        let result = insert(needed.file, &parameters(needed.file, command_line));
        if needed.required {
            result?;
        }
    }
    Ok(())
}

fn insert(file: &str, parameters: &CStr) -> nix::Result<()> {
    let file = File::open(Path::new(DIRECTORY).join(file)).map_err(|error| errno_of(&error))?;
    match finit_module(&file, parameters, ModuleInitFlags::empty()) {
        // Another request was faster.
        Err(Errno::EEXIST) => Ok(()),
        result => result,
    }
}

/// What the kernel's command line has for a module, as it has for those that are built in: `MODULE.NAME=VALUE`.
fn parameters(file: &str, command_line: &str) -> CString {
    let module = module_of(file).unwrap_or_default();
    let words = command_line.split_ascii_whitespace().filter_map(|word| {
        let (name, parameter) = word.split_once('.')?;
        same(name.as_bytes(), module.as_bytes()).then_some(parameter)
    });
    // A word has no NUL: the line is text that the kernel gave.
    CString::new(words.collect::<Vec<_>>().join(" ")).unwrap_or_default()
}

/// The module in a file.
fn module_of(file: &str) -> Option<&str> {
    file.rsplit('/').next().unwrap_or(file).strip_suffix(".ko")
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// A file to load, and whether the module that it is loaded for fails without it.
#[derive(Debug, PartialEq, Eq)]
struct Step<'a> {
    file: &'a str,
    required: bool,
}

/// The lists that depmod makes.
struct Index {
    /// Lines `FILE: FILE…`: a module and what it needs.
    dependencies: String,
    /// Lines `alias PATTERN MODULE`.
    aliases: String,
    /// Lines `softdep MODULE pre: MODULE… post: MODULE…`.
    soft: String,
}

impl Index {
    fn read(directory: &Path) -> io::Result<Self> {
        let read = |name: &str| fs::read_to_string(directory.join(name));
        Ok(Index {
            dependencies: read("modules.dep")?,
            aliases: read("modules.alias")?,
            soft: read("modules.softdep")?,
        })
    }

    /// The modules that a name means: itself, or those with such an alias.
    fn find<'a>(&'a self, name: &'a str) -> Vec<&'a str> {
        if self.dependencies_of(name).is_some() {
            return vec![name];
        }
        let mut found: Vec<&str> = self
            .aliases
            .lines()
            .filter_map(|line| {
                let mut words = line.split_ascii_whitespace();
                let (Some("alias"), Some(pattern), Some(module)) = (words.next(), words.next(), words.next())
                else {
                    return None;
                };
                matches(pattern.as_bytes(), name.as_bytes()).then_some(module)
            })
            .collect();
        found.dedup();
        found
    }

    /// What has to be loaded for a module, in that order, itself last.
    fn order<'a>(&'a self, module: &str) -> Vec<Step<'a>> {
        let mut steps = Vec::new();
        for soft in self.soft_dependencies_of(module) {
            for found in self.find(soft) {
                self.add(found, false, &mut steps);
            }
        }
        self.add(module, true, &mut steps);
        let mut seen = HashSet::new();
        // The first place that something has is early enough; who needs it decides whether it must succeed.
        let required: HashSet<&str> =
            steps.iter().filter(|step| step.required).map(|step| step.file).collect();
        steps.retain_mut(|step| {
            step.required = required.contains(step.file);
            seen.insert(step.file)
        });
        steps
    }

    fn add<'a>(&'a self, module: &str, required: bool, steps: &mut Vec<Step<'a>>) {
        let Some((file, needed)) = self.dependencies_of(module) else { return };
        // depmod lists what a module needs before what that needs in turn.
        let needed = needed.split_ascii_whitespace().rev();
        steps.extend(needed.chain([file]).map(|file| Step { file, required }));
    }

    fn dependencies_of(&self, module: &str) -> Option<(&str, &str)> {
        self.dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(file, _)| module_of(file).is_some_and(|name| same(name.as_bytes(), module.as_bytes())))
    }

    fn soft_dependencies_of(&self, module: &str) -> Vec<&str> {
        let mut found = Vec::new();
        for line in self.soft.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some("softdep"), Some(name)) = (words.next(), words.next()) else { continue };
            if !same(name.as_bytes(), module.as_bytes()) {
                continue;
            }
            let mut before = false;
            for word in words {
                match word {
                    "pre:" => before = true,
                    "post:" => before = false,
                    name if before => found.push(name),
                    _ => {}
                }
            }
        }
        found
    }
}

/// In names of modules, `-` and `_` are the same.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(&one, &other)| equal(one, other))
}

fn equal(one: u8, other: u8) -> bool {
    one == other || matches!((one, other), (b'-', b'_') | (b'_', b'-'))
}

/// Whether a name fits a pattern with `*` and `?`, in time linear in the pattern's length for each byte.
/// Patterns with `[…]` are those of hardware that a guest has none of; they fit nothing.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    if pattern.contains(&b'[') {
        return false;
    }
    let (mut p, mut n) = (0, 0);
    // Where to go on if what follows the last star does not fit here.
    let mut again: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                again = Some((p + 1, n));
                p += 1;
            }
            Some(&byte) if byte == b'?' || equal(byte, name[n]) => {
                p += 1;
                n += 1;
            }
            _ => match again {
                Some((after, from)) => {
                    again = Some((after, from + 1));
                    p = after;
                    n = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        Index {
            dependencies: "a/xt_LOG.ko: a/nf_log.ko\nnf_log.ko:\nwireguard.ko: chacha-x86_64.ko libchacha.ko\n\
                           chacha-x86_64.ko: libchacha.ko\nlibchacha.ko:\naesni-intel.ko:\naes_generic.ko:\nppp.ko:\n"
                .to_owned(),
            aliases: "# a comment\nalias ipt_LOG xt_LOG\nalias rtnl-link-wireguard wireguard\n\
                      alias crypto-aes aesni_intel\nalias crypto-aes aes_generic\nalias char-major-108-* ppp\n\
                      alias cpu:type:x86,*[ab] aesni_intel\nalias broken\n"
                .to_owned(),
            soft: "softdep xt_LOG pre: crypto-aes ppp post: wireguard\nsoftdep nf_log pre: gone\n".to_owned(),
        }
    }

    fn files(index: &Index, module: &str) -> Vec<String> {
        index.order(module).into_iter().map(|step| step.file.to_owned()).collect()
    }

    #[test]
    fn names_and_aliases_are_found_whichever_dashes_they_have() {
        let index = index();
        assert_eq!(index.find("xt_LOG"), ["xt_LOG"]);
        assert_eq!(index.find("ipt_LOG"), ["xt_LOG"]);
        assert_eq!(index.find("rtnl_link-wireguard"), ["wireguard"]);
        assert_eq!(index.find("crypto-aes"), ["aesni_intel", "aes_generic"]);
        assert_eq!(index.find("char-major-108-0"), ["ppp"]);
        assert_eq!(files(&index, "aesni_intel"), ["aesni-intel.ko"]);
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let index = index();
        for name in ["", "ipt_LO", "ipt_LOGS", "char-major-10-200", "broken", "../xt_LOG", "cpu:type:x86,a"] {
            assert!(index.find(name).is_empty(), "{name}");
        }
        assert!(index.order("nothing").is_empty());
    }

    #[test]
    fn what_a_module_needs_is_loaded_first_and_once() {
        let index = index();
        assert_eq!(files(&index, "wireguard"), ["libchacha.ko", "chacha-x86_64.ko", "wireguard.ko"]);
        let order = index.order("xt_LOG");
        let optional: Vec<&str> = order.iter().filter(|step| !step.required).map(|step| step.file).collect();
        assert_eq!(optional, ["aesni-intel.ko", "aes_generic.ko", "ppp.ko"]);
        let required: Vec<&str> = order.iter().filter(|step| step.required).map(|step| step.file).collect();
        assert_eq!(required, ["a/nf_log.ko", "a/xt_LOG.ko"]);
    }

    #[test]
    fn parameters_are_those_of_the_command_line() {
        let line = "quiet ifb.numifbs=0 x.ifb.a=1 aes_ni.fast aes-ni.n=2 pouch_exit.port=1\n";
        assert_eq!(parameters("ifb.ko", line).as_c_str(), c"numifbs=0");
        assert_eq!(parameters("aes-ni.ko", line).as_c_str(), c"fast n=2");
        assert_eq!(parameters("dummy.ko", line).as_c_str(), c"");
    }

    #[test]
    fn device_nodes_are_read_from_depmods_list() {
        let tun = DeviceNode { name: "net/tun", kind: SFlag::S_IFCHR, number: makedev(10, 200) };
        assert_eq!(DeviceNode::parse("tun net/tun c10:200"), Some(tun));
        assert_eq!(DeviceNode::parse("disk d b7:0").unwrap().kind, SFlag::S_IFBLK);
        for bad in
            ["", "# Device nodes", "tun net/tun", "tun net/tun x1:2", "tun net/tun c1", "tun t \u{e4}1:2"]
        {
            assert_eq!(DeviceNode::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn patterns_with_many_stars_end_soon() {
        let pattern = "*a".repeat(40) + "b";
        assert!(!matches(pattern.as_bytes(), "a".repeat(4000).as_bytes()));
        assert!(matches(b"net-pf-*-proto-?", b"net-pf-16-proto-9"));
    }
}
