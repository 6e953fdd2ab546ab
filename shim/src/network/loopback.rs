//! Connections to the loopback addresses of a pod's network namespace go to the guest.
//!
//! containerd forwards a port (`kubectl port-forward`) by a connection to `localhost` in that namespace, but the
//! containers listen in the guest, which has a loopback interface of its own. So a socket of the sandbox host process
//! gets all connections to loopback addresses, whatever their port: a BPF program chooses it when the first packet
//! arrives (BPF_PROG_TYPE_SK_LOOKUP). No process of the pod is in the namespace on the host.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, bind, setsockopt, socket, sockopt,
};
use pouch_bpf::{
    ADD_IMMEDIATE, AND_IMMEDIATE, CALL, EXIT, Hook, Instruction, JUMP, JUMP_EQUAL, JUMP_EQUAL_LONG,
    JUMP_NOT_EQUAL, LOAD_NUMBER, LOAD_WORD, MOVE_IMMEDIATE, MOVE_REGISTER, STORE_WORD, instruction,
};

use super::Guest;

/// Connections at a time.
const CONNECTIONS_MAX: usize = 256;
/// Stack size of a thread: enough for a buffer.
const STACK: usize = 128 * 1024;
/// Delay before the next attempt to accept a connection after a failed one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections cannot be forwarded.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LoopbackError(&'static str, #[source] io::Error);

/// A socket that gets all TCP connections to loopback addresses of a network namespace.
#[derive(Debug)]
pub struct Loopback {
    listener: TcpListener,
    /// The BPF program is attached as long as this is open.
    link: OwnedFd,
}

impl Loopback {
    /// Takes the connections in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`LoopbackError`] names the step.
    pub fn open() -> Result<Self, LoopbackError> {
        let failed = |step| move |error| LoopbackError(step, error);
        // The namespace may have no IPv6.
        let listener = listen().or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let listener = listener.map_err(failed("no socket could be opened"))?;
        let link = catch_all(&listener).map_err(failed("the BPF program could not be attached"))?;
        Ok(Loopback { listener, link })
    }

    /// Forwards the connections to the guest, until this process ends.
    ///
    /// # Errors
    /// [`LoopbackError`] if a thread cannot be started.
    pub fn forward(self, guest: Arc<dyn Guest + Send + Sync>) -> Result<(), LoopbackError> {
        let serve = move || accept(&self.listener, &self.link, &guest);
        let spawned = thread::Builder::new().name("loopback".to_owned()).stack_size(STACK).spawn(serve);
        spawned.map(drop).map_err(|error| LoopbackError("a thread could not be started", error))
    }
}

/// A socket that can have connections of IPv4 too, which one that is bound to ::1 cannot. Frames for other addresses of
/// the namespace go to the guest.
fn listen() -> io::Result<TcpListener> {
    let socket = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    let address = SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0));
    bind(socket.as_raw_fd(), &address)?;
    nix::sys::socket::listen(&socket, Backlog::MAXCONN)?;
    Ok(TcpListener::from(socket))
}

/// Lets a socket get all TCP connections to loopback addresses, until the result is dropped.
fn catch_all(listener: &TcpListener) -> io::Result<OwnedFd> {
    let map = pouch_bpf::socket_map(listener.as_fd())?;
    let program = pouch_bpf::load(&program(map.as_raw_fd()), Hook::SOCKET_LOOKUP)?;
    let namespace = File::open("/proc/thread-self/ns/net")?;
    pouch_bpf::link(program.as_fd(), namespace.as_fd(), Hook::SOCKET_LOOKUP)
}

/// The program: it lets the kernel go on (`SK_PASS`), with the socket of the map for what concerns us.
fn program(map: i32) -> Vec<Instruction> {
    // Offsets in `struct bpf_sk_lookup` of linux/bpf.h; addresses are in network order.
    const FAMILY: i16 = 8;
    const PROTOCOL: i16 = 12;
    const LOCAL_IP4: i16 = 40;
    const LOCAL_IP6: [i16; 4] = [44, 48, 52, 56];
    // Functions of linux/bpf.h.
    const MAP_LOOKUP_ELEMENT: i32 = 1;
    const SK_RELEASE: i32 = 86;
    const SK_ASSIGN: i32 = 124;
    const SK_PASS: i32 = 1;
    /// The source of a number that stands for a map: BPF_PSEUDO_MAP_FD.
    const MAP_FD: u8 = 1;
    const R0: u8 = 0;
    const R1: u8 = 1;
    const R2: u8 = 2;
    const R3: u8 = 3;
    // Kept over calls.
    const CONTEXT: u8 = 6;
    const SOCKET: u8 = 7;
    const FRAME: u8 = 10;
    let load = |offset| instruction(LOAD_WORD, R2 | CONTEXT << 4, offset, 0);
    let last = i32::from_ne_bytes(1_u32.to_be_bytes());
    // Jumps to `pass`, and to `found`, are set when their places are known.
    let (pass, found) = (i16::MAX, i16::MAX - 1);
    let mut program = vec![
        instruction(MOVE_REGISTER, CONTEXT | R1 << 4, 0, 0),
        load(PROTOCOL),
        instruction(JUMP_NOT_EQUAL, R2, pass, libc::IPPROTO_TCP),
        load(FAMILY),
        instruction(JUMP_EQUAL, R2, 4, libc::AF_INET6),
        // 127.0.0.0/8. The first byte is the lowest one.
        load(LOCAL_IP4),
        instruction(AND_IMMEDIATE, R2, 0, 0xff),
        instruction(JUMP_NOT_EQUAL, R2, pass, 127),
        instruction(JUMP, 0, found, 0),
    ];
    // ::1
    for (offset, word) in LOCAL_IP6.into_iter().zip([0, 0, 0, last]) {
        program.extend([load(offset), instruction(JUMP_NOT_EQUAL, R2, pass, word)]);
    }
    let place = program.len();
    program.extend([
        // The key 0, on the stack.
        instruction(MOVE_IMMEDIATE, R1, 0, 0),
        instruction(STORE_WORD, FRAME | R1 << 4, -4, 0),
        instruction(MOVE_REGISTER, R2 | FRAME << 4, 0, 0),
        instruction(ADD_IMMEDIATE, R2, 0, -4),
        instruction(LOAD_NUMBER, R1 | MAP_FD << 4, 0, map),
        instruction(0, 0, 0, 0),
        instruction(CALL, 0, 0, MAP_LOOKUP_ELEMENT),
        instruction(JUMP_EQUAL_LONG, R0, pass, 0),
        instruction(MOVE_REGISTER, SOCKET | R0 << 4, 0, 0),
        instruction(MOVE_REGISTER, R1 | CONTEXT << 4, 0, 0),
        instruction(MOVE_REGISTER, R2 | SOCKET << 4, 0, 0),
        instruction(MOVE_IMMEDIATE, R3, 0, 0),
        instruction(CALL, 0, 0, SK_ASSIGN),
        instruction(MOVE_REGISTER, R1 | SOCKET << 4, 0, 0),
        instruction(CALL, 0, 0, SK_RELEASE),
    ]);
    let end = program.len();
    program.extend([instruction(MOVE_IMMEDIATE, R0, 0, SK_PASS), instruction(EXIT, 0, 0, 0)]);
    for (index, one) in program.iter_mut().enumerate() {
        // An offset counts from the next instruction, and the program is short.
        let to = |place: usize| (place - index - 1) as i16;
        match one.offset {
            offset if offset == pass => one.offset = to(end),
            offset if offset == found => one.offset = to(place),
            _ => {}
        }
    }
    program
}

/// Accepts connections until the process ends.
fn accept(listener: &TcpListener, _link: &OwnedFd, guest: &Arc<dyn Guest + Send + Sync>) {
    let running = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((client, _)) = listener.accept() else {
            // There are no descriptors or memory left, which may change.
            thread::sleep(ACCEPT_PAUSE);
            continue;
        };
        if running.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            refuse(&client);
            continue;
        }
        running.fetch_add(1, Ordering::Relaxed);
        let (guest, own) = (guest.clone(), running.clone());
        let serve = move || {
            relay(&client, &*guest);
            own.fetch_sub(1, Ordering::Relaxed);
        };
        if thread::Builder::new().name("port".to_owned()).stack_size(STACK).spawn(serve).is_err() {
            running.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Connects a client to the port that it wanted, and relays until both sides have ended.
fn relay(client: &TcpStream, guest: &(dyn Guest + Send + Sync)) {
    let server = client.local_addr().map_err(Into::into).and_then(|wanted| guest.connect_port(wanted.port()));
    let Ok(server) = server else { return refuse(client) };
    thread::scope(|scope| {
        let back = || {
            // Either side may end it at any time.
            let _ = io::copy(&mut &server, &mut &*client);
            let _ = client.shutdown(Shutdown::Write);
        };
        let spawned =
            thread::Builder::new().name("port-back".to_owned()).stack_size(STACK).spawn_scoped(scope, back);
        if spawned.is_err() {
            return refuse(client);
        }
        let _ = io::copy(&mut &*client, &mut &server);
        let _ = UnixStream::shutdown(&server, Shutdown::Write);
    });
}

/// Resets a connection when it is closed, as the kernel does where nobody listens.
fn refuse(client: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // If this fails, the client reads an end.
    let _ = setsockopt(client, sockopt::Linger, &linger);
    let _ = client.shutdown(Shutdown::Read);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::GuestError;
    use nix::sched::{CloneFlags, unshare};
    use pouch_protocol::agent::SetNetworkRequest;
    use pouch_vmm_api::config::NetworkConfig;
    use std::io::{Read, Write};
    use std::process::Command;

    /// A guest in which port 80 answers with what it is sent.
    struct Echo;

    impl Guest for Echo {
        fn plug_network(&self, _: &File, _: Option<&File>, _: NetworkConfig) -> Result<u32, GuestError> {
            Err("no network".into())
        }

        fn set_network(&self, _: SetNetworkRequest) -> Result<(), GuestError> {
            Err("no network".into())
        }

        fn forward_resolver(&self, _: Ipv4Addr) -> Result<UnixStream, GuestError> {
            Err("no resolver".into())
        }

        fn connect_port(&self, port: u16) -> Result<UnixStream, GuestError> {
            if port != 80 {
                return Err("nobody listens".into());
            }
            let (ours, mut theirs) = UnixStream::pair()?;
            thread::spawn(move || {
                let mut text = Vec::new();
                theirs.read_to_end(&mut text).unwrap();
                theirs.write_all(&text).unwrap();
            });
            Ok(ours)
        }
    }

    #[test]
    fn all_ports_of_loopback_addresses_are_the_guests() {
        let test = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root can make a network namespace");
            assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            assert!(
                Command::new("ip")
                    .args(["addr", "add", "10.9.9.9/32", "dev", "lo"])
                    .status()
                    .unwrap()
                    .success()
            );
            Loopback::open().unwrap().forward(Arc::new(Echo)).unwrap();
            for address in ["127.0.0.1:80", "127.1.2.3:80", "[::1]:80"] {
                let mut client = TcpStream::connect(address).unwrap_or_else(|e| panic!("{address}: {e}"));
                client.write_all(address.as_bytes()).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                let mut text = String::new();
                client.read_to_string(&mut text).unwrap();
                assert_eq!(text, address);
            }
            let error = TcpStream::connect("127.0.0.1:81").and_then(|mut client| client.read(&mut [0]));
            assert_eq!(error.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            let error = TcpStream::connect("10.9.9.9:80").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "other addresses are not");
        };
        // The namespace is that of a thread.
        thread::spawn(test).join().unwrap();
    }
}
