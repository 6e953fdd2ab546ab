//! BPF programs, written as instructions, and the kernel's calls to load and attach them (bpf(2), linux/bpf.h).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One instruction: `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub code: u8,
    /// Destination register in the low half, source register in the high one.
    pub registers: u8,
    /// Bytes into what a register points to, or instructions to jump over.
    pub offset: i16,
    /// A number.
    pub immediate: i32,
}

const _: () = assert!(size_of::<Instruction>() == 8);

/// `*(u32 *)(source + offset)` (linux/bpf_common.h, linux/bpf.h: BPF_LDX | BPF_MEM | BPF_W).
pub const LOAD_WORD: u8 = 0x61;
/// `*(u32 *)(destination + offset) = source`.
pub const STORE_WORD: u8 = 0x63;
/// A 64-bit number, of which this instruction has the low half and the next the high one.
pub const LOAD_NUMBER: u8 = 0x18;
/// `destination = immediate`.
pub const MOVE_IMMEDIATE: u8 = 0xb7;
/// `destination = source`.
pub const MOVE_REGISTER: u8 = 0xbf;
/// `destination &= immediate`, 32 bits.
pub const AND_IMMEDIATE: u8 = 0x54;
/// `destination >>= immediate`, 32 bits.
pub const SHIFT_RIGHT: u8 = 0x74;
/// `destination += immediate`, 64 bits.
pub const ADD_IMMEDIATE: u8 = 0x07;
/// Jumps if `destination != immediate`, 32 bits.
pub const JUMP_NOT_EQUAL: u8 = 0x56;
/// Jumps if `destination != source`, 64 bits.
pub const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5d;
/// Jumps if `destination == immediate`, 32 bits.
pub const JUMP_EQUAL: u8 = 0x16;
/// Jumps if `destination == immediate`, 64 bits.
pub const JUMP_EQUAL_LONG: u8 = 0x15;
/// Jumps always.
pub const JUMP: u8 = 0x05;
/// Calls the kernel's function with the number `immediate`.
pub const CALL: u8 = 0x85;
/// Returns register 0.
pub const EXIT: u8 = 0x95;

/// Puts an instruction together.
pub fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers, offset, immediate }
}

/// The hook of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `enum bpf_prog_type`.
    program_type: u32,
    /// `enum bpf_attach_type`.
    attach_type: u32,
}

impl Hook {
    /// Opening and making device nodes.
    pub const DEVICE: Hook = Hook { program_type: 15, attach_type: 6 };
    /// connect(2) to an IPv4 address.
    pub const CONNECT4: Hook = Hook { program_type: 18, attach_type: 10 };
    /// connect(2) to an IPv6 address, which may be a mapped one of IPv4.
    pub const CONNECT6: Hook = Hook { program_type: 18, attach_type: 11 };
    /// Sending a UDP datagram to an IPv4 address, mapped or not, that the sender names.
    pub const UDP4_SEND: Hook = Hook { program_type: 18, attach_type: 14 };
    /// The source address of a UDP datagram that an IPv4 socket receives.
    pub const UDP4_RECEIVE: Hook = Hook { program_type: 18, attach_type: 19 };
    /// The source address of a UDP datagram that an IPv6 socket receives.
    pub const UDP6_RECEIVE: Hook = Hook { program_type: 18, attach_type: 20 };
    /// getpeername(2) of an IPv4 socket.
    pub const PEER4: Hook = Hook { program_type: 18, attach_type: 29 };
    /// getpeername(2) of an IPv6 socket.
    pub const PEER6: Hook = Hook { program_type: 18, attach_type: 30 };
    /// The choice of a socket for a packet that arrives in a network namespace.
    pub const SOCKET_LOOKUP: Hook = Hook { program_type: 30, attach_type: 36 };
}

/// The start of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
struct LoadAttributes {
    program_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

const _: () = assert!(size_of::<LoadAttributes>() == 72);

/// The start of `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C)]
struct AttachAttributes {
    target_fd: u32,
    program_fd: u32,
    attach_type: u32,
    flags: u32,
    replace_fd: u32,
}

const _: () = assert!(size_of::<AttachAttributes>() == 20);

/// The start of `union bpf_attr` for BPF_LINK_CREATE.
#[repr(C)]
struct LinkAttributes {
    program_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

const _: () = assert!(size_of::<LinkAttributes>() == 16);

/// The start of `union bpf_attr` for BPF_MAP_CREATE.
#[repr(C)]
struct MapAttributes {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

const _: () = assert!(size_of::<MapAttributes>() == 20);

/// The start of `union bpf_attr` for BPF_MAP_UPDATE_ELEM.
#[repr(C)]
struct ElementAttributes {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

const _: () = assert!(size_of::<ElementAttributes>() == 32);

/// Loads a program for `hook`.
///
/// # Errors
/// The error of bpf(2).
pub fn load(program: &[Instruction], hook: Hook) -> io::Result<OwnedFd> {
    const PROG_LOAD: libc::c_int = 5;
    let attributes = LoadAttributes {
        program_type: hook.program_type,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: [0; 16],
        interface: 0,
        attach_type: hook.attach_type,
    };
    // SAFETY: the structure is that of the command, and what it points to outlives the call.
    unsafe { make(PROG_LOAD, &attributes) }
}

/// Attaches a program to a cgroup, in addition to others or replacing `previous`, until the cgroup is removed.
///
/// # Errors
/// The error of bpf(2).
pub fn attach(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    hook: Hook,
    previous: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    const PROG_ATTACH: libc::c_int = 8;
    const ALLOW_MULTI: u32 = 2;
    const REPLACE: u32 = 4;
    let mut attributes = AttachAttributes {
        target_fd: cgroup.as_raw_fd() as u32,
        program_fd: program.as_raw_fd() as u32,
        attach_type: hook.attach_type,
        flags: ALLOW_MULTI,
        replace_fd: 0,
    };
    if let Some(previous) = previous {
        attributes.flags |= REPLACE;
        attributes.replace_fd = previous.as_raw_fd() as u32;
    }
    // SAFETY: the structure is that of the command, and its descriptors are open.
    unsafe { call(PROG_ATTACH, &attributes) }.map(drop)
}

/// Attaches a program to a network namespace, until the result is dropped. Programs of others run too.
///
/// # Errors
/// The error of bpf(2).
pub fn link(program: BorrowedFd<'_>, namespace: BorrowedFd<'_>, hook: Hook) -> io::Result<OwnedFd> {
    const LINK_CREATE: libc::c_int = 28;
    let attributes = LinkAttributes {
        program_fd: program.as_raw_fd() as u32,
        target_fd: namespace.as_raw_fd() as u32,
        attach_type: hook.attach_type,
        flags: 0,
    };
    // SAFETY: the structure is that of the command, and its descriptors are open.
    unsafe { make(LINK_CREATE, &attributes) }
}

/// A map with one socket, under the key 0: `BPF_MAP_TYPE_SOCKMAP`.
///
/// # Errors
/// The error of bpf(2).
pub fn socket_map(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const MAP_CREATE: libc::c_int = 0;
    const MAP_UPDATE: libc::c_int = 2;
    const SOCKMAP: u32 = 15;
    let attributes =
        MapAttributes { map_type: SOCKMAP, key_size: 4, value_size: 8, max_entries: 1, flags: 0 };
    // SAFETY: the structure is that of the command.
    let map = unsafe { make(MAP_CREATE, &attributes) }?;
    let (key, value) = (0_u32, socket.as_raw_fd() as u64);
    let attributes = ElementAttributes {
        map_fd: map.as_raw_fd() as u32,
        padding: 0,
        key: (&raw const key) as u64,
        value: (&raw const value) as u64,
        flags: 0,
    };
    // SAFETY: the structure is that of the command; key and value have the sizes of the map, and outlive the call.
    unsafe { call(MAP_UPDATE, &attributes) }?;
    Ok(map)
}

/// Calls bpf(2).
///
/// # Safety
/// `attributes` must be the structure of `command`, and what it points to valid.
unsafe fn call<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads as many bytes as the structure has; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// As [`call`], for a command that makes a descriptor.
///
/// # Safety
/// As [`call`]; and `command` must return a new descriptor.
unsafe fn make<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { call(command, attributes) }?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
