//! Tests of the server with requests and responses in guest memory.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::abi::*;
use super::flights::Flight;
use super::message::object;
use super::metadata::{FS_IOC_FSGETXATTR, FS_IOC_GETFLAGS, FS_IOC_GETFSLABEL, FS_IOC_GETVERSION};
use super::server::Server;
use crate::devices::virtio::hostile::{Guest, rounds};
use crate::memory::{self, Memory};

/// Where the rings, the request and the room for the answer lie.
const RINGS: u64 = 0x1_0000;
const REQUEST: u64 = 0x10_0000;
const ANSWER: u64 = 0x20_0000;
const ROOM: u32 = 0x2_0000;
/// The number of a request that is always being served.
const WAITING: u64 = 77;

thread_local! {
    // Guest memory stays mapped until its process ends.
    static MEMORY: Arc<Memory> = Arc::new(memory::tests::create(4));
}

/// A guest that has mounted a share.
struct Mounted {
    server: Server,
    memory: Arc<Memory>,
    uid: u32,
}

fn mount(folder: &Path) -> Mounted {
    mount_with(folder, 1000, 1000)
}

fn mount_with(folder: &Path, descriptors: u64, kept: usize) -> Mounted {
    // As the jail does; otherwise the first request of another user would cost this thread its capabilities.
    let bits = rustix::thread::CapabilitiesSecureBits::NO_SETUID_FIXUP;
    if !rustix::thread::capabilities_secure_bits().unwrap().contains(bits) {
        rustix::thread::set_capabilities_secure_bits(bits).expect("these tests must be run as root");
    }
    let server = Server::new(folder.to_owned(), descriptors, kept);
    let guest = Mounted { server, memory: MEMORY.with(Arc::clone), uid: 0 };
    let init = InitIn { major: 7, minor: 40, flags: u32::MAX, flags2: u32::MAX, ..InitIn::default() };
    let answer: InitOut = guest.ask(op::INIT, 0, &[init.as_slice()]).unwrap();
    assert_eq!((answer.major, answer.max_write), (7, 1 << 20));
    guest
}

impl Mounted {
    /// Sends a request whose body has these parts; returns the answer, or the number of errno(3).
    fn call(&self, opcode: u32, node: u64, parts: &[&[u8]]) -> Result<Vec<u8>, i32> {
        self.call_as(&[], opcode, node, parts)
    }

    /// The same with an extension.
    fn call_as(&self, extension: &[u8], opcode: u32, node: u64, parts: &[&[u8]]) -> Result<Vec<u8>, i32> {
        let body = [&parts.concat(), extension].concat();
        let header = InHeader {
            len: (size_of::<InHeader>() + body.len()) as u32,
            opcode,
            unique: 9,
            node,
            uid: self.uid,
            gid: self.uid,
            extension_units: (extension.len() / 8) as u16,
            ..InHeader::default()
        };
        let request = [header.as_slice(), &body].concat();
        let (table, available, used) = (RINGS, RINGS + 0x1000, RINGS + 0x2000);
        let memory = &self.memory;
        memory.write_slice(&request, GuestAddress(REQUEST)).unwrap();
        // Two descriptors, of which the second is for the device to write (section 2.7.5).
        let descriptors: [(u64, u32, u16, u16); 2] =
            [(REQUEST, request.len() as u32, 1, 1), (ANSWER, ROOM, 2, 0)];
        for (index, (address, length, flags, next)) in (0..).zip(descriptors) {
            let at = |offset| GuestAddress(table + index * 16 + offset);
            memory.write_obj(address, at(0)).unwrap();
            memory.write_obj(length, at(8)).unwrap();
            memory.write_obj(flags, at(12)).unwrap();
            memory.write_obj(next, at(14)).unwrap();
        }
        memory.write_obj(1_u16, GuestAddress(available + 2)).unwrap();
        memory.write_obj(0_u16, GuestAddress(available + 4)).unwrap();
        let mut queue = Queue::new(16).unwrap();
        queue.set_size(16);
        queue.set_desc_table_address(Some(table as u32), Some(0));
        queue.set_avail_ring_address(Some(available as u32), Some(0));
        queue.set_used_ring_address(Some(used as u32), Some(0));
        queue.set_ready(true);
        let chain = queue.pop_descriptor_chain(memory.clone()).unwrap();
        let flight = Flight::new(1, chain.clone());
        self.server.flights.begin(WAITING, &flight);
        let [used, interrupted] = self.server.serve(memory, 1, chain);
        let interrupts = opcode == op::INTERRUPT && parts == [WAITING.to_le_bytes()];
        assert_eq!(interrupted.is_some(), interrupts && !flight.claim());
        let written = interrupted.or(used).unwrap().written as usize;
        let mut answer = vec![0; written];
        memory.read_slice(&mut answer, GuestAddress(ANSWER)).unwrap();
        let Some(header) = object::<OutHeader>(&answer) else { return Ok(Vec::new()) };
        assert_eq!((header.len as usize, header.unique), (written, if interrupts { WAITING } else { 9 }));
        if header.error == 0 { Ok(answer[size_of::<OutHeader>()..].to_vec()) } else { Err(-header.error) }
    }

    fn ask<T: ByteValued + Default>(&self, opcode: u32, node: u64, parts: &[&[u8]]) -> Result<T, i32> {
        self.call(opcode, node, parts).map(|answer| object(&answer).expect("the answer is too short"))
    }

    fn ask_as<T: ByteValued + Default>(
        &self,
        extension: &[u8],
        opcode: u32,
        node: u64,
        parts: &[&[u8]],
    ) -> Result<T, i32> {
        let answer = self.call_as(extension, opcode, node, parts);
        answer.map(|answer| object(&answer).expect("the answer is too short"))
    }

    fn lookup(&self, node: u64, name: &str) -> Result<EntryOut, i32> {
        self.ask(op::LOOKUP, node, &[name.as_bytes(), b"\0"])
    }

    fn open(&self, node: u64, flags: i32) -> Result<OpenOut, i32> {
        let open = OpenIn { flags: flags as u32, ..OpenIn::default() };
        self.ask(op::OPEN, node, &[open.as_slice()])
    }

    fn create(&self, node: u64, name: &str, flags: i32, mode: u32, umask: u32) -> Result<Vec<u8>, i32> {
        let create = CreateIn { flags: flags as u32, mode, umask, open_flags: 0 };
        self.call(op::CREATE, node, &[create.as_slice(), name.as_bytes(), b"\0"])
    }

    fn read(&self, node: u64, handle: u64, offset: u64) -> Result<Vec<u8>, i32> {
        let read = ReadIn { handle, offset, size: 4096, ..ReadIn::default() };
        self.call(op::READ, node, &[read.as_slice()])
    }

    fn write(&self, node: u64, handle: u64, offset: u64, bytes: &[u8]) -> Result<u32, i32> {
        let write = WriteIn { handle, offset, size: bytes.len() as u32, ..WriteIn::default() };
        self.ask(op::WRITE, node, &[write.as_slice(), bytes]).map(|answer: WriteOut| answer.size)
    }

    /// The names of a directory, with what the guest is told of each.
    fn list(&self, node: u64) -> Vec<(String, Dirent, EntryOut)> {
        let opened: OpenOut = self.ask(op::OPENDIR, node, &[OpenIn::default().as_slice()]).unwrap();
        let (mut offset, mut found) = (0, Vec::new());
        loop {
            let read = ReadIn { handle: opened.handle, offset, size: 512, ..ReadIn::default() };
            let listing = self.call(op::READDIRPLUS, node, &[read.as_slice()]).unwrap();
            if listing.is_empty() {
                return found;
            }
            let mut rest = &listing[..];
            while let Some(entry) = object::<EntryOut>(rest) {
                rest = &rest[size_of::<EntryOut>()..];
                let dirent: Dirent = object(rest).unwrap();
                let length = dirent.name_length as usize;
                let name = String::from_utf8(rest[24..24 + length].to_vec()).unwrap();
                rest = &rest[24 + length.next_multiple_of(8)..];
                offset = dirent.offset;
                found.push((name, dirent, entry));
            }
        }
    }
}

#[test]
fn a_file_is_made_written_read_and_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let guest = mount(folder.path());
    let made = guest.create(ROOT, "file", libc::O_RDWR, 0o666, 0o022).unwrap();
    let (entry, opened) = (object::<EntryOut>(&made).unwrap(), object::<OpenOut>(&made[128..]).unwrap());
    assert_eq!(entry.attr.mode, libc::S_IFREG | 0o644);
    assert_eq!(guest.write(entry.node, opened.handle, 2, b"text"), Ok(4));
    assert_eq!(guest.read(entry.node, opened.handle, 0), Ok(b"\0\0text".to_vec()));
    assert_eq!(guest.read(entry.node, opened.handle, 100), Ok(vec![]));
    assert_eq!(guest.read(entry.node, opened.handle, u64::MAX), Ok(vec![]));
    // Where it lies by now does not matter.
    fs::remove_file(folder.path().join("file")).unwrap();
    let attributes: AttrOut = guest.ask(op::GETATTR, entry.node, &[GetattrIn::default().as_slice()]).unwrap();
    assert_eq!((attributes.attr.size, attributes.attr.nlink), (6, 0));
    let reopened = guest.open(entry.node, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(entry.node, reopened.handle, 2), Ok(b"text".to_vec()));
    let release = ReleaseIn { handle: opened.handle, ..ReleaseIn::default() };
    guest.call(op::RELEASE, entry.node, &[release.as_slice()]).unwrap();
    assert_eq!(guest.read(entry.node, opened.handle, 0), Err(libc::EBADF));
    guest.call(op::FORGET, entry.node, &[ForgetIn { count: 1 }.as_slice()]).unwrap();
    assert_eq!(guest.open(entry.node, libc::O_RDONLY).map(|opened| opened.handle), Err(libc::ESTALE));
}

#[test]
fn a_file_that_somebody_made_meanwhile_is_not_opened_unchecked() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "secret").unwrap();
    let guest = mount(folder.path());
    let flags = libc::O_RDWR | libc::O_TRUNC;
    assert_eq!(guest.create(ROOT, "file", flags, 0o644, 0), Err(libc::ESTALE));
    assert_eq!(guest.create(ROOT, "file", flags | libc::O_EXCL, 0o644, 0), Err(libc::EEXIST));
    assert_eq!(fs::read_to_string(folder.path().join("file")).unwrap(), "secret");
}

#[test]
fn that_there_is_no_file_may_be_believed_for_a_second() {
    let folder = tempfile::tempdir().unwrap();
    let guest = mount(folder.path());
    let missing = guest.lookup(ROOT, "missing").unwrap();
    assert_eq!((missing.node, missing.entry_valid), (0, 1));
    fs::write(folder.path().join("missing"), "").unwrap();
    assert_ne!(guest.lookup(ROOT, "missing").unwrap().node, 0);
}

#[test]
fn a_listing_has_every_name_and_the_numbers_of_stat() {
    let folder = tempfile::tempdir().unwrap();
    let mut names: Vec<String> = (0..40).map(|index| format!("file-{index}")).collect();
    for name in &names {
        fs::write(folder.path().join(name), "").unwrap();
    }
    symlink("nowhere", folder.path().join("link")).unwrap();
    names.extend([".".to_owned(), "..".to_owned(), "link".to_owned()]);
    names.sort();
    // With room for few files, the others are listed without being told of.
    for guest in [mount(folder.path()), mount_with(folder.path(), 20, 1000)] {
        let mut found = guest.list(ROOT);
        found.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(found.iter().map(|(name, ..)| name.clone()).collect::<Vec<_>>(), names);
        for (name, dirent, entry) in found {
            let number = fs::symlink_metadata(folder.path().join(&name)).unwrap().ino();
            assert_eq!(dirent.ino, number, "{name}");
            assert!(entry.node == 0 || entry.attr.ino == number, "{name}");
            assert!(entry.node == 0 || !name.starts_with('.'));
        }
    }
}

#[test]
fn the_trees_directories_are_the_file_systems() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["0/rootfs", "1/2/etc", "containers/5/0/1"] {
        fs::create_dir_all(folder.path().join(name)).unwrap();
    }
    fs::write(folder.path().join("1/2/etc/hosts"), "").unwrap();
    let guest = mount(folder.path());
    let found = |path: &str| {
        let step = |parent, name| guest.lookup(parent, name).unwrap();
        path.split('/').fold(EntryOut { node: ROOT, ..EntryOut::default() }, |at, name| step(at.node, name))
    };
    let is_submount = |path: &str| found(path).attr.flags & ATTR_SUBMOUNT != 0;
    let submounts = ["0", "1", "containers/5/0"];
    let others =
        ["0/rootfs", "1/2", "1/2/etc", "1/2/etc/hosts", "containers", "containers/5", "containers/5/0/1"];
    assert_eq!(submounts.map(is_submount), [true; 3]);
    assert_eq!(others.map(is_submount), [false; 7]);
    let hosts = fs::metadata(folder.path().join("1/2/etc/hosts")).unwrap();
    assert_eq!(found("1/2/etc/hosts").attr.ino, hosts.ino());
    // One has a file of the host, which is synced; the other has none.
    for system in ["0", "1"] {
        let padding = 0_u64.to_le_bytes();
        assert_eq!(guest.call(op::SYNCFS, found(system).node, &[&padding]), Ok(Vec::new()));
    }
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("share")).unwrap();
    fs::write(folder.path().join("secret"), "").unwrap();
    symlink("../secret", folder.path().join("share/link")).unwrap();
    let guest = mount(&folder.path().join("share"));
    for name in ["..", ".", "", "../secret", "/etc", "a/b"] {
        assert_eq!(guest.lookup(ROOT, name).map(|entry| entry.node), Err(libc::EINVAL), "{name}");
    }
    // A symbolic link is the guest's to follow.
    let link = guest.lookup(ROOT, "link").unwrap();
    assert_eq!(guest.call(op::READLINK, link.node, &[]), Ok(b"../secret".to_vec()));
    assert_eq!(guest.open(link.node, libc::O_RDONLY).map(|opened| opened.handle), Err(libc::ENXIO));
}

#[test]
fn files_are_not_opened_in_ways_that_mean_something_else_on_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let guest = mount(folder.path());
    for flags in [libc::O_PATH, libc::O_TMPFILE | libc::O_RDWR, libc::O_TMPFILE | libc::O_DIRECTORY] {
        assert_eq!(guest.open(ROOT, flags).map(|opened| opened.handle), Err(libc::EINVAL));
        let open = OpenIn { flags: flags as u32, ..OpenIn::default() };
        assert_eq!(guest.call(op::OPENDIR, ROOT, &[open.as_slice()]), Err(libc::EINVAL));
        assert_eq!(guest.create(ROOT, "file", flags, 0o644, 0), Err(libc::EINVAL));
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    // A request of its own makes a file without a name.
    let flags = (libc::O_TMPFILE | libc::O_RDWR) as u32;
    let create = CreateIn { flags, mode: 0o600, ..CreateIn::default() };
    let made = guest.call(op::TMPFILE, ROOT, &[create.as_slice(), b"#1\0"]).unwrap();
    let entry: EntryOut = object(&made).unwrap();
    let link = LinkIn { node: entry.node };
    guest.call(op::LINK, ROOT, &[link.as_slice(), b"named\0"]).unwrap();
    assert_eq!(fs::metadata(folder.path().join("named")).unwrap().mode(), libc::S_IFREG | 0o600);
}

#[test]
fn a_request_acts_as_its_caller() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut guest = mount(folder.path());
    guest.uid = 1000;
    let made = guest.create(ROOT, "own", libc::O_RDWR, 0o600, 0).unwrap();
    let entry: EntryOut = object(&made).unwrap();
    assert_eq!((entry.attr.uid, entry.attr.gid), (1000, 1000));
    // Without CAP_CHOWN a file cannot be given away; without being told, the guest's kernel has checked it.
    let give = SetattrIn { valid: setattr::UID, uid: 5, ..SetattrIn::default() };
    for (capabilities, groups, expected) in [
        (Some(0_u64), &[][..], Err(libc::EPERM)),
        (Some(rustix::thread::CapabilitySet::CHOWN.bits()), &[7_u32][..], Ok(5)),
        (None, &[][..], Ok(5)),
    ] {
        let extension = caller(capabilities, groups);
        let answer: Result<AttrOut, i32> =
            guest.ask_as(&extension, op::SETATTR, entry.node, &[give.as_slice()]);
        assert_eq!(answer.map(|answer| answer.attr.uid), expected);
    }
    // A file of root's that its group may read.
    let shared = folder.path().join("shared");
    fs::write(&shared, "text").unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(&shared, Some(0), Some(77)).unwrap();
    let shared = guest.lookup(ROOT, "shared").unwrap();
    let open = OpenIn { flags: libc::O_RDONLY as u32, ..OpenIn::default() };
    for (groups, expected) in [(&[][..], Err(libc::EACCES)), (&[5, 77][..], Ok(()))] {
        let extension = caller(Some(0), groups);
        let answer: Result<OpenOut, i32> =
            guest.ask_as(&extension, op::OPEN, shared.node, &[open.as_slice()]);
        assert_eq!(answer.map(drop), expected);
    }
    // Nobody is not everybody.
    guest.uid = u32::MAX;
    assert_eq!(guest.lookup(ROOT, "shared").map(|entry| entry.node), Err(libc::EINVAL));
}

#[test]
fn a_caller_locks_what_it_has_open_and_could_not_open_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    fs::write(&path, "").unwrap();
    std::os::unix::fs::chown(&path, Some(1000), None).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o200)).unwrap();
    let mut guest = mount(folder.path());
    guest.uid = 1000;
    let file = guest.lookup(ROOT, "log").unwrap();
    let none = caller(Some(0), &[]);
    let open = OpenIn { flags: libc::O_WRONLY as u32, ..OpenIn::default() };
    let opened: OpenOut = guest.ask_as(&none, op::OPEN, file.node, &[open.as_slice()]).unwrap();
    // Locks of flock(2) need no right to read; those of fcntl(2) that exclude others need the right to write.
    let wanted = FileLock { start: 0, end: 9, lock_type: libc::F_WRLCK as u32, pid: 1 };
    for flags in [0, LOCK_FLOCK] {
        let lock = LockIn { handle: opened.handle, owner: 1, lock: wanted, flags, padding: 0 };
        assert_eq!(guest.call_as(&none, op::SETLK, file.node, &[lock.as_slice()]), Ok(vec![]));
    }
    assert_eq!(guest.call_as(&none, op::SYNCFS, file.node, &[&[0; 8]]), Ok(vec![]));
}

/// The extension that tells of a caller.
fn caller(capabilities: Option<u64>, groups: &[u32]) -> Vec<u8> {
    let flags = capabilities.map_or(0, |_| CALLER_CAPABILITIES);
    let caller =
        CallerIn { capabilities: capabilities.unwrap_or_default(), flags, groups: groups.len() as u32 };
    let mut body = caller.as_slice().to_vec();
    body.extend(groups.iter().flat_map(|group| group.to_le_bytes()));
    body.resize(body.len().next_multiple_of(8), 0);
    let size = (size_of::<ExtensionHeader>() + body.len()) as u32;
    [ExtensionHeader { size, kind: EXTENSION_CALLER }.as_slice(), &body].concat()
}

#[test]
fn a_default_access_control_list_takes_the_place_of_the_umask() {
    let folder = tempfile::tempdir().unwrap();
    let guest = mount(folder.path());
    // posix_acl_xattr_header and entries of include/uapi/linux/posix_acl_xattr.h: rwx for owner, group and others.
    let list: Vec<u8> = [2_u32]
        .into_iter()
        .chain([0x0007_0001, u32::MAX, 0x0007_0004, u32::MAX, 0x0007_0020, u32::MAX])
        .flat_map(u32::to_le_bytes)
        .collect();
    let set = SetxattrIn { size: list.len() as u32, ..SetxattrIn::default() };
    match guest.call(op::SETXATTR, ROOT, &[set.as_slice(), b"system.posix_acl_default\0", &list]) {
        // The file system of whoever tests has none.
        Err(libc::EOPNOTSUPP) => return,
        result => result.unwrap(),
    };
    let made = guest.create(ROOT, "file", libc::O_RDWR, 0o664, 0o077).unwrap();
    assert_eq!(object::<EntryOut>(&made).unwrap().attr.mode & 0o777, 0o664);
}

#[test]
fn a_request_whose_process_is_killed_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let guest = mount(folder.path());
    let interrupt = |unique: u64| guest.call(op::INTERRUPT, 0, &[&unique.to_le_bytes()]);
    assert_eq!(interrupt(WAITING), Err(libc::EINTR));
    // One that is not being served, or was answered, is not.
    assert_eq!(interrupt(5), Ok(vec![]));
}

#[test]
fn what_an_interrupted_request_would_have_told_is_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let guest = mount(folder.path());
    let file = guest.lookup(ROOT, "file").unwrap();
    let opened = guest.open(file.node, libc::O_RDONLY).unwrap();
    guest.server.take_back(op::OPEN, file.node, opened.as_slice());
    assert_eq!(guest.read(file.node, opened.handle, 0), Err(libc::EBADF));
    guest.server.take_back(op::LOOKUP, ROOT, file.as_slice());
    assert_eq!(guest.open(file.node, libc::O_RDONLY).map(drop), Err(libc::ESTALE));
}

#[test]
fn a_fifo_is_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let guest = mount(folder.path());
    let mknod = MknodIn { mode: libc::S_IFIFO | 0o644, ..MknodIn::default() };
    let fifo: EntryOut = guest.ask(op::MKNOD, ROOT, &[mknod.as_slice(), b"fifo\0"]).unwrap();
    assert_eq!(guest.open(fifo.node, libc::O_RDONLY).map(|opened| opened.handle), Err(libc::ENXIO));
}

#[test]
fn contents_that_are_made_while_they_are_read_are_read_each_time() {
    let guest = mount(Path::new("/proc"));
    let file = guest.lookup(ROOT, "meminfo").unwrap();
    assert_eq!(file.attr.size, 0);
    let opened = guest.open(file.node, libc::O_RDONLY).unwrap();
    assert_eq!(opened.open_flags, fopen::DIRECT_IO | fopen::NOFLUSH);
    assert!(guest.read(file.node, opened.handle, 0).unwrap().starts_with(b"MemTotal"));
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("empty"), "").unwrap();
    let guest = mount(folder.path());
    let file = guest.lookup(ROOT, "empty").unwrap();
    assert_eq!(guest.open(file.node, libc::O_RDWR).unwrap().open_flags, 0);
}

#[test]
fn attributes_and_flags_are_the_hosts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, "12345").unwrap();
    let guest = mount(folder.path());
    let file = guest.lookup(ROOT, "file").unwrap();
    let statx: StatxOut = guest.ask(op::STATX, file.node, &[StatxIn::default().as_slice()]).unwrap();
    let host = fs::metadata(&path).unwrap();
    assert_eq!((statx.stat.size, statx.stat.ino, statx.stat.nlink), (5, host.ino(), 1));
    if let Ok(birth) = host.created() {
        let birth = birth.duration_since(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(statx.stat.btime.seconds as u64, birth.as_secs());
    }
    let opened = guest.open(file.node, libc::O_RDONLY).unwrap();
    let ioctl = |command, out_size| {
        let request = IoctlIn { handle: opened.handle, command, out_size, ..IoctlIn::default() };
        guest.call(op::IOCTL, file.node, &[request.as_slice()])
    };
    // A file system without flags says so itself.
    let all =
        [(FS_IOC_GETFLAGS, 4), (FS_IOC_FSGETXATTR, 28), (FS_IOC_GETVERSION, 4), (FS_IOC_GETFSLABEL, 256)];
    for (command, size) in all {
        match ioctl(command, size) {
            Ok(answer) => assert_eq!(answer.len(), 16 + size as usize),
            Err(error) => assert!([libc::ENOTTY, libc::EOPNOTSUPP].contains(&error), "{error}"),
        }
    }
    assert_eq!(ioctl(0x5401, 64), Err(libc::ENOTTY));
    let set = SetattrIn {
        valid: setattr::MODE | setattr::SIZE | setattr::MTIME,
        mode: 0o600,
        size: 3,
        mtime: 77,
        ..SetattrIn::default()
    };
    let answer: AttrOut = guest.ask(op::SETATTR, file.node, &[set.as_slice()]).unwrap();
    assert_eq!((answer.attr.mode, answer.attr.size, answer.attr.mtime), (libc::S_IFREG | 0o600, 3, 77));
    assert_eq!(fs::read_to_string(&path).unwrap(), "123");
}

#[test]
fn set_id_bits_stay_or_go_as_the_guest_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let guest = mount(folder.path());
    for (flags, left) in [(0, 0o4755), (WRITE_KILL_SET_ID, 0o755)] {
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
        let file = guest.lookup(ROOT, "file").unwrap();
        let opened = guest.open(file.node, libc::O_WRONLY).unwrap();
        let write = WriteIn { handle: opened.handle, size: 1, write_flags: flags, ..WriteIn::default() };
        guest.call(op::WRITE, file.node, &[write.as_slice(), b"x"]).unwrap();
        let mode = fs::metadata(&path).unwrap().mode() & 0o7777;
        // The host's own root keeps them, whatever the guest says.
        assert!(mode == left || mode == 0o4755, "{mode:o}");
    }
}

#[test]
fn no_more_room_is_made_than_a_value_can_take() {
    let folder = tempfile::tempdir().unwrap();
    let guest = mount(folder.path());
    let get = GetxattrIn { size: u32::MAX, padding: 0 };
    assert!(guest.call(op::GETXATTR, ROOT, &[get.as_slice(), b"user.none\0"]).is_err());
    let _ = guest.call(op::LISTXATTR, ROOT, &[get.as_slice()]);
    let set = SetxattrIn { size: 100, ..SetxattrIn::default() };
    assert_eq!(guest.call(op::SETXATTR, ROOT, &[set.as_slice(), b"user.a\0short"]), Err(libc::EINVAL));
    assert_eq!(guest.call(op::GETXATTR, ROOT, &[get.as_slice(), b"user.pouch-vm.x\0"]), Err(libc::ENODATA));
}

#[test]
fn locks_are_refused_without_a_guest_that_asks_again() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let guest = mount(folder.path());
    let file = guest.lookup(ROOT, "file").unwrap();
    let wanted = FileLock { start: 0, end: 9, lock_type: libc::F_WRLCK as u32, pid: 1 };
    let lock = LockIn { owner: 1, lock: wanted, ..LockIn::default() };
    assert_eq!(guest.call(op::SETLK, file.node, &[lock.as_slice()]), Ok(vec![]));
    let other = mount(folder.path());
    let file = other.lookup(ROOT, "file").unwrap();
    assert_eq!(other.call(op::SETLKW, file.node, &[lock.as_slice()]), Err(libc::EAGAIN));
    let init = InitIn { major: 7, minor: 40, flags: u32::MAX, ..InitIn::default() };
    let answer: InitOut = guest.ask(op::INIT, 0, &[init.as_slice()]).unwrap();
    assert_eq!(u64::from(answer.flags) & (init::POSIX_LOCKS | init::FLOCK_LOCKS), 0);
    // Mounting again gave its locks back.
    assert_eq!(other.call(op::SETLK, file.node, &[lock.as_slice()]), Ok(vec![]));
    assert_eq!(guest.call(op::SETLK, ROOT, &[lock.as_slice()]), Err(libc::ENOSYS));
}

#[test]
fn a_guest_without_descriptors_left_gets_an_error() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let guest = mount_with(folder.path(), 4, 1000);
    let file = guest.lookup(ROOT, "file").unwrap();
    for _ in 0..2 {
        guest.open(file.node, libc::O_RDONLY).unwrap();
    }
    assert_eq!(guest.open(file.node, libc::O_RDONLY).map(|opened| opened.handle), Err(libc::ENFILE));
    assert_eq!(guest.create(ROOT, "new", libc::O_RDWR, 0o644, 0), Err(libc::ENFILE));
}

/// FUSE_FALLOCATE is left out, because it would fill the disk of whoever tests.
fn requests() -> impl Strategy<Value = Vec<u8>> + Clone {
    let length = prop_oneof![40..200_u32, any::<u32>()];
    let operation = prop_oneof![20 => 1..53_u32, 1 => any::<u32>()]
        .prop_filter("fills the disk", |&operation| operation != op::FALLOCATE);
    let node = prop_oneof![4 => 1..4_u64, 1 => any::<u64>()];
    let word = prop_oneof![4 => 0..4_u64, 1 => any::<u64>()];
    let name =
        prop::sample::select(vec!["file", "directory", "..", ".", "", "../secret", "/etc", "new", "n/w"]);
    let body = (prop::collection::vec(word, 0..10), name).prop_map(|(words, name)| {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(name.as_bytes());
        bytes.push(0);
        bytes
    });
    let extensions = prop_oneof![8 => Just(0_u16), 1 => any::<u16>()];
    (length, operation, node, body, extensions).prop_map(|(length, operation, node, body, extensions)| {
        let header = InHeader {
            len: length,
            opcode: operation,
            unique: 1,
            node,
            extension_units: extensions,
            ..InHeader::default()
        };
        let mut bytes = [header.as_slice(), &body].concat();
        bytes.resize(0x1000, 0);
        bytes
    })
}

proptest! {
    #[test]
    fn a_share_stands_any_queue(rounds in rounds(2, requests())) {
        let folder = tempfile::tempdir().unwrap();
        let share = folder.path().join("share");
        fs::create_dir_all(share.join("directory")).unwrap();
        fs::write(share.join("file"), "shared").unwrap();
        fs::write(folder.path().join("secret"), "not shared").unwrap();
        let mounted = mount_with(&share, 50, 2);
        let mut guest = Guest::new(2);
        let mut queues = guest.queues();
        for round in &rounds {
            let queue = guest.play(round);
            queues[queue].for_each(|memory, chain| {
                let used = mounted.server.serve(memory, queue, chain);
                used[0].map_or(0, |used| used.written)
            });
        }
        let outside: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        prop_assert_eq!(outside.len(), 2);
        prop_assert_eq!(fs::read_to_string(folder.path().join("secret")).unwrap(), "not shared");
    }
}
