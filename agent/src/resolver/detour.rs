//! Redirects port 53 of the resolver's address to the agent's port.
//!
//! BPF programs on the guest's root cgroup do this, so programs still see port 53. They apply only to sockets
//! of the guest's own network namespace, because an engine inside the container may have such a resolver in
//! each of its namespaces. IPv6 sockets that also accept IPv4 may use the mapped address, ::ffff:127.0.0.11,
//! as Java does.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use pouch_bpf::{
    self as bpf, CALL, EXIT, Hook, Instruction, JUMP_NOT_EQUAL, JUMP_NOT_EQUAL_REGISTER, LOAD_NUMBER,
    LOAD_WORD, MOVE_IMMEDIATE, MOVE_REGISTER, STORE_WORD, instruction,
};

use super::ResolverError;

const CGROUP: &str = "/sys/fs/cgroup";
/// The port of DNS.
const DOMAIN: u16 = 53;
/// asm-generic/socket.h
const SO_NETNS_COOKIE: libc::c_int = 71;
/// `bpf_get_netns_cookie` of linux/bpf.h.
const GET_NETNS_COOKIE: i32 = 122;
/// Offsets in `struct bpf_sock_addr` of linux/bpf.h; all are in network order.
const ADDRESS: i16 = 4;
const ADDRESS6: [i16; 4] = [8, 12, 16, 20];
const PORT: i16 = 24;
/// The third word of a mapped address (RFC 4291, section 2.5.5.2); those before it are 0.
const MAPPED: u32 = 0xffff;

/// Redirects port 53 of `address` to `port`.
pub fn lay(address: Ipv4Addr, port: u16) -> Result<(), ResolverError> {
    let error = |step| move |error| ResolverError::Detour(step, error);
    let cookie = namespace_cookie().map_err(error("read the network namespace's cookie for"))?;
    let cgroup = File::open(CGROUP).map_err(error("open the cgroup of"))?;
    let (plain, mapped) = (plain(address), mapped(address));
    // The kernel turns a mapped address that a datagram is sent to into a plain one before it asks.
    for (hook, words, from, to) in [
        (Hook::CONNECT4, &plain[..], DOMAIN, port),
        (Hook::CONNECT6, &mapped[..], DOMAIN, port),
        (Hook::UDP4_SEND, &plain[..], DOMAIN, port),
        (Hook::UDP4_RECEIVE, &plain[..], port, DOMAIN),
        (Hook::UDP6_RECEIVE, &mapped[..], port, DOMAIN),
        (Hook::PEER4, &plain[..], port, DOMAIN),
        (Hook::PEER6, &mapped[..], port, DOMAIN),
    ] {
        let program = bpf::load(&assemble(words, from, to, cookie), hook).map_err(error("load"))?;
        bpf::attach(cgroup.as_fd(), program.as_fd(), hook, None).map_err(error("attach"))?;
    }
    Ok(())
}

/// The number of this network namespace.
fn namespace_cookie() -> io::Result<u64> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut cookie = 0u64;
    let mut length = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which the number has.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// What a program for IPv4 finds where, if the address is this.
fn plain(address: Ipv4Addr) -> [(i16, i32); 1] {
    [(ADDRESS, i32::from_ne_bytes(address.octets()))]
}

/// What a program for IPv6 finds where, if the address is this one, mapped.
fn mapped(address: Ipv4Addr) -> [(i16, i32); 4] {
    let [first, second, third, fourth] = ADDRESS6;
    let marker = i32::from_ne_bytes(MAPPED.to_be_bytes());
    [(fourth, i32::from_ne_bytes(address.octets())), (third, marker), (second, 0), (first, 0)]
}

/// The program that changes the port `from` of the address with these words to `to`, in the namespace
/// with `cookie`. It always answers 1: go on.
fn assemble(words: &[(i16, i32)], from: u16, to: u16, cookie: u64) -> Vec<Instruction> {
    const ANSWER: u8 = 0;
    const ARGUMENT: u8 = 1;
    const VALUE: u8 = 2;
    // Kept over calls.
    const CONTEXT: u8 = 6;
    let network_order = |port: u16| i32::from(port.to_be());
    let load = |offset| instruction(LOAD_WORD, VALUE | CONTEXT << 4, offset, 0);
    let change = [
        // The argument register still holds the context.
        instruction(CALL, 0, 0, GET_NETNS_COOKIE),
        instruction(LOAD_NUMBER, VALUE, 0, cookie as i32),
        instruction(0, 0, 0, (cookie >> 32) as i32),
        instruction(JUMP_NOT_EQUAL_REGISTER, ANSWER | VALUE << 4, 2, 0),
        instruction(MOVE_IMMEDIATE, VALUE, 0, network_order(to)),
        instruction(STORE_WORD, CONTEXT | VALUE << 4, PORT, 0),
    ];
    let mut program = vec![instruction(MOVE_REGISTER, CONTEXT | ARGUMENT << 4, 0, 0)];
    let comparisons = words.len() + 1;
    for (done, (offset, wanted)) in words.iter().copied().chain([(PORT, network_order(from))]).enumerate() {
        // Over the comparisons that follow, of two instructions each, and the change.
        let over = 2 * (comparisons - done - 1) + change.len();
        program.push(load(offset));
        program.push(instruction(JUMP_NOT_EQUAL, VALUE, over as i16, wanted));
    }
    program.extend(change);
    // Where all jumps go.
    program.push(instruction(MOVE_IMMEDIATE, ANSWER, 0, 1));
    program.push(instruction(EXIT, 0, 0, 0));
    program
}
