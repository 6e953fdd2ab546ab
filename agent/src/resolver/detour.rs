//! Who asks port 53 of the resolver's address gets the agent's port, and sees port 53.
//!
//! Programs on the guest's root cgroup do it, for sockets of the guest's own network namespace
//! only: an engine inside the container may have such a resolver in each of its namespaces.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::ResolverError;
use crate::bpf::{
    self, CALL, EXIT, Hook, Instruction, JUMP_NOT_EQUAL, JUMP_NOT_EQUAL_REGISTER, LOAD_NUMBER, LOAD_WORD,
    MOVE_IMMEDIATE, MOVE_REGISTER, STORE_WORD, instruction,
};

const CGROUP: &str = "/sys/fs/cgroup";
/// The port of DNS.
const DOMAIN: u16 = 53;
/// asm-generic/socket.h
const SO_NETNS_COOKIE: libc::c_int = 71;
/// `bpf_get_netns_cookie` of linux/bpf.h.
const GET_NETNS_COOKIE: i32 = 122;
/// Offsets in `struct bpf_sock_addr` of linux/bpf.h; both are in network order.
const ADDRESS: i16 = 4;
const PORT: i16 = 24;

/// Makes `port` stand in for port 53 of `address`.
pub fn lay(address: Ipv4Addr, port: u16) -> Result<(), ResolverError> {
    let error = |step| move |error| ResolverError::Detour(step, error);
    let cookie = namespace_cookie().map_err(error("tell namespaces apart for"))?;
    let cgroup = File::open(CGROUP).map_err(error("find the cgroup of"))?;
    for (hook, from, to) in [
        (Hook::CONNECT4, DOMAIN, port),
        (Hook::UDP4_SEND, DOMAIN, port),
        (Hook::UDP4_RECEIVE, port, DOMAIN),
        (Hook::PEER4, port, DOMAIN),
    ] {
        let program = bpf::load(&assemble(address, from, to, cookie), hook).map_err(error("load"))?;
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

/// The program that changes the port `from` of `address` to `to`, in the namespace with `cookie`. It
/// always answers 1: go on.
fn assemble(address: Ipv4Addr, from: u16, to: u16, cookie: u64) -> Vec<Instruction> {
    const ANSWER: u8 = 0;
    const ARGUMENT: u8 = 1;
    const VALUE: u8 = 2;
    // Kept over calls.
    const CONTEXT: u8 = 6;
    let network_order = |port: u16| i32::from(port.to_be());
    let address = i32::from_ne_bytes(address.octets());
    let load = |offset| instruction(LOAD_WORD, VALUE | CONTEXT << 4, offset, 0);
    vec![
        instruction(MOVE_REGISTER, CONTEXT | ARGUMENT << 4, 0, 0),
        load(ADDRESS),
        instruction(JUMP_NOT_EQUAL, VALUE, 8, address),
        load(PORT),
        instruction(JUMP_NOT_EQUAL, VALUE, 6, network_order(from)),
        // The argument register still holds the context.
        instruction(CALL, 0, 0, GET_NETNS_COOKIE),
        instruction(LOAD_NUMBER, VALUE, 0, cookie as i32),
        instruction(0, 0, 0, (cookie >> 32) as i32),
        instruction(JUMP_NOT_EQUAL_REGISTER, ANSWER | VALUE << 4, 2, 0),
        instruction(MOVE_IMMEDIATE, VALUE, 0, network_order(to)),
        instruction(STORE_WORD, CONTEXT | VALUE << 4, PORT, 0),
        // Where all jumps go.
        instruction(MOVE_IMMEDIATE, ANSWER, 0, 1),
        instruction(EXIT, 0, 0, 0),
    ]
}
