//! All vsock connections of a VM, and the descriptors that they poll.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

use super::connection::{Connection, Phase};
use super::packet::{Header, Operation};

/// The most connections at a time.
const MAX_CONNECTIONS: usize = 1024;
/// Resets for packets of unknown connections that wait for the guest to take them.
const MAX_RESETS: usize = 64;
/// Interval of connection requests to a port without a listener, unless the guest signals that it listens.
const RETRY: Duration = Duration::from_millis(20);
/// Host ports are given out from here on.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// Events taken from the kernel at a time.
const EVENTS: usize = 32;
/// The timer's mark among the connections' ports, which are not 0.
const TIMER: u64 = 0;

/// Called with the host's end of a connection, or why there is none.
pub type ConnectCallback = Box<dyn FnOnce(Result<UnixStream, ConnectError>) + Send>;

/// A connection could not be created.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing in the guest took it in time.
    #[error("no listener in the guest on vsock port {port} within {timeout_ms} ms")]
    Timeout {
        /// The port.
        port: u32,
        /// How long it was tried.
        timeout_ms: u32,
    },
    /// There are too many.
    #[error("the VM already has {MAX_CONNECTIONS} vsock connections")]
    TooMany,
    /// The guest's answer was invalid.
    #[error("the guest violated the vsock protocol")]
    Protocol,
    /// A socket could not be created.
    #[error("a socket pair could not be created: {0}")]
    Socket(#[from] io::Error),
}

/// Counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Connections there are.
    pub connections: usize,
    /// Bytes to the guest.
    pub to_guest: u64,
    /// Bytes from the guest.
    pub from_guest: u64,
}

/// A pending connection, and its callback.
struct Waiting {
    host_end: UnixStream,
    done: ConnectCallback,
    deadline: Instant,
    retry_at: Option<Instant>,
    timeout_ms: u32,
}

struct Entry {
    guest_port: u32,
    connection: Connection,
    waiting: Option<Waiting>,
    /// In the list of those with packets.
    listed: bool,
}

/// All connections, by the host's port, which is unique.
pub struct Muxer {
    epoll: Epoll,
    timer: TimerFd,
    entries: HashMap<u32, Entry>,
    ready: VecDeque<u32>,
    resets: VecDeque<(u32, u32)>,
    next_port: u32,
    counters: Counters,
}

impl AsRawFd for Muxer {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

impl Muxer {
    /// No connections.
    ///
    /// # Errors
    /// If an epoll or timer descriptor cannot be created.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let timer = TimerFd::new().map_err(io::Error::from)?;
        epoll.ctl(ControlOperation::Add, timer.as_raw_fd(), EpollEvent::new(EventSet::IN, TIMER))?;
        Ok(Muxer {
            epoll,
            timer,
            entries: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_port: FIRST_HOST_PORT,
            counters: Counters::default(),
        })
    }

    /// Counters.
    pub fn counters(&self) -> Counters {
        Counters { connections: self.entries.len(), ..self.counters }
    }

    /// Starts a connection to `guest_port`; `done` is called when it is open or given up.
    pub fn connect(&mut self, guest_port: u32, timeout_ms: u32, done: ConnectCallback) {
        if self.entries.len() >= MAX_CONNECTIONS {
            return done(Err(ConnectError::TooMany));
        }
        let (ours, host_end) = match pair() {
            Ok(pair) => pair,
            Err(error) => return done(Err(error.into())),
        };
        let host_port = self.free_port();
        let deadline = Instant::now() + Duration::from_millis(timeout_ms.into());
        let waiting = Waiting { host_end, done, deadline, retry_at: None, timeout_ms };
        let entry =
            Entry { guest_port, connection: Connection::new(ours), waiting: Some(waiting), listed: false };
        self.entries.insert(host_port, entry);
        self.list(host_port);
        self.arm_timer();
    }

    fn free_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            if !self.entries.contains_key(&port) {
                return port;
            }
        }
    }

    /// Whether there is a packet for the guest.
    pub fn has_packets(&self) -> bool {
        !self.ready.is_empty() || !self.resets.is_empty()
    }

    /// The next packet for the guest, its payload written into `data`.
    pub fn next_packet(&mut self, data: Option<&VolatileSlice<'_>>) -> Option<Header> {
        if let Some((host_port, guest_port)) = self.resets.pop_front() {
            return Some(reset(host_port, guest_port));
        }
        while let Some(host_port) = self.ready.pop_front() {
            let Some(entry) = self.entries.get_mut(&host_port) else { continue };
            entry.listed = false;
            let packet = entry.connection.next_packet(data, host_port, entry.guest_port);
            // To the end of the list, for fairness.
            self.settle(host_port);
            if let Some(packet) = packet {
                self.counters.to_guest += u64::from(packet.length);
                return Some(packet);
            }
        }
        None
    }

    /// Takes a packet from the guest.
    pub fn receive(&mut self, header: Header, data: Option<&VolatileSlice<'_>>) {
        let host_port = header.host_port;
        let entry = self.entries.get_mut(&host_port).filter(|entry| entry.guest_port == header.guest_port);
        let Some(entry) = entry else {
            // The host does not listen; but the agent connects to signal that it listens.
            if header.operation == Operation::Request {
                self.ask_again(|waiting| waiting.retry_at.is_some());
            }
            if header.operation != Operation::Reset && self.resets.len() < MAX_RESETS {
                self.resets.push_back((host_port, header.guest_port));
            }
            return;
        };
        self.counters.from_guest += u64::from(header.length);
        if header.operation == Operation::Reset && entry.connection.phase == Phase::Connecting {
            // Nothing listens there yet.
            if let Some(waiting) = &mut entry.waiting {
                waiting.retry_at = Some(Instant::now() + RETRY);
            }
            return self.arm_timer();
        }
        let result = entry.connection.receive(&header, data);
        if entry.connection.phase == Phase::Open
            && let Some(waiting) = entry.waiting.take()
        {
            self.opened(host_port, waiting);
        }
        if result.is_err() {
            crate::log_line!("the guest violated the vsock protocol; the connection is reset");
            let waiting = self.entries.remove(&host_port).and_then(|entry| entry.waiting);
            self.resets.push_back((host_port, header.guest_port));
            if let Some(waiting) = waiting {
                (waiting.done)(Err(ConnectError::Protocol));
            }
            return;
        }
        self.settle(host_port);
    }

    /// The guest accepted the connection: watch its socket and pass the other end to the host.
    fn opened(&mut self, host_port: u32, waiting: Waiting) {
        let Some(stream) = self.entries.get(&host_port).and_then(|entry| entry.connection.stream()) else {
            return;
        };
        let event = EpollEvent::new(EventSet::empty(), host_port.into());
        match self.epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), event) {
            Ok(()) => (waiting.done)(Ok(waiting.host_end)),
            Err(error) => {
                self.entries.remove(&host_port);
                (waiting.done)(Err(error.into()));
            }
        }
    }

    /// Puts a connection into the list of those with packets.
    fn list(&mut self, host_port: u32) {
        if let Some(entry) = self.entries.get_mut(&host_port)
            && !entry.listed
        {
            entry.listed = true;
            self.ready.push_back(host_port);
        }
    }

    /// After each event of a connection: lists it if it has packets, watches its socket for the next event, or removes
    /// it.
    fn settle(&mut self, host_port: u32) {
        let Some(entry) = self.entries.get(&host_port) else { return };
        let connection = &entry.connection;
        if connection.is_over() {
            self.entries.remove(&host_port);
            return;
        }
        let listed = connection.has_packet();
        if entry.waiting.is_none()
            && !connection.hung_up()
            && let Some(stream) = connection.stream()
        {
            // One-shot, because the kernel otherwise reports a hang-up each time. While packets wait for the guest, further
            // events are not needed.
            let mut interest = EventSet::ONE_SHOT;
            if connection.wants_read() && !listed {
                interest |= EventSet::IN;
            }
            if connection.wants_write() {
                interest |= EventSet::OUT;
            }
            let event = EpollEvent::new(interest, host_port.into());
            if let Err(error) = self.epoll.ctl(ControlOperation::Modify, stream.as_raw_fd(), event) {
                crate::log_line!("a socket connection cannot be watched: {error}");
            }
        }
        if listed {
            self.list(host_port);
        }
    }

    /// Handles the events of the sockets and the timer.
    pub fn process_events(&mut self) {
        let mut events = [EpollEvent::default(); EVENTS];
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        for event in &events[..count] {
            if event.data() == TIMER {
                let _ = self.timer.wait();
                self.on_timer();
                continue;
            }
            let Ok(host_port) = u32::try_from(event.data()) else { continue };
            if let Some(entry) = self.entries.get_mut(&host_port) {
                let set = event.event_set();
                let hung_up = set.intersects(EventSet::HANG_UP | EventSet::ERROR);
                entry.connection.on_event(set.contains(EventSet::IN), set.contains(EventSet::OUT), hung_up);
                self.settle(host_port);
            }
        }
    }

    /// Repeats connection requests that are due, and drops those that have timed out.
    fn on_timer(&mut self) {
        let now = Instant::now();
        for host_port in self.waiting(|waiting| waiting.deadline <= now) {
            let Some(entry) = self.entries.remove(&host_port) else { continue };
            if let Some(Waiting { done, timeout_ms, .. }) = entry.waiting {
                done(Err(ConnectError::Timeout { port: entry.guest_port, timeout_ms }));
            }
        }
        self.ask_again(|waiting| waiting.due() <= now);
        self.arm_timer();
    }

    /// The ports of pending connections with this property.
    fn waiting(&self, holds: impl Fn(&Waiting) -> bool) -> Vec<u32> {
        let waiting = self.entries.iter().filter(|(_, entry)| entry.waiting.as_ref().is_some_and(&holds));
        waiting.map(|(port, _)| *port).collect()
    }

    /// Repeats the requests of pending connections with this property.
    fn ask_again(&mut self, holds: impl Fn(&Waiting) -> bool) {
        for host_port in self.waiting(holds) {
            let Some(entry) = self.entries.get_mut(&host_port) else { continue };
            if let Some(waiting) = &mut entry.waiting {
                waiting.retry_at = None;
            }
            entry.connection.request_again();
            self.list(host_port);
        }
    }

    fn arm_timer(&mut self) {
        let next = self.entries.values().filter_map(|entry| entry.waiting.as_ref()).map(Waiting::due).min();
        let Some(next) = next else { return };
        // A timer of 0 would be off.
        let delay = next.saturating_duration_since(Instant::now()).max(Duration::from_micros(1));
        if let Err(error) = self.timer.reset(delay, None) {
            crate::log_line!("a timer cannot be set: {error}");
        }
    }
}

impl Waiting {
    fn due(&self) -> Instant {
        self.retry_at.map_or(self.deadline, |retry| retry.min(self.deadline))
    }
}

fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let (ours, host_end) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((ours, host_end))
}

fn reset(host_port: u32, guest_port: u32) -> Header {
    Header {
        host_port,
        guest_port,
        operation: Operation::Reset,
        flags: 0,
        length: 0,
        buf_alloc: 0,
        fwd_cnt: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::sync::mpsc;

    fn from_guest(sent: &Header, operation: Operation) -> Header {
        Header { operation, buf_alloc: 4096, fwd_cnt: 0, length: 0, flags: 0, ..*sent }
    }

    fn next(muxer: &mut Muxer, room: &mut [u8]) -> Option<Header> {
        muxer.next_packet(Some(&VolatileSlice::from(room)))
    }

    #[test]
    fn a_connection_is_tried_again_until_the_guest_listens() {
        let mut muxer = Muxer::new().unwrap();
        let (sender, receiver) = mpsc::channel();
        muxer.connect(1024, 10_000, Box::new(move |result| sender.send(result).unwrap()));
        let mut room = [0; 100];
        for _ in 0..3 {
            let request = next(&mut muxer, &mut room).unwrap();
            assert_eq!((request.operation, request.guest_port), (Operation::Request, 1024));
            muxer.receive(from_guest(&request, Operation::Reset), None);
            assert!(!muxer.has_packets());
            std::thread::sleep(RETRY * 2);
            muxer.process_events();
        }
        let request = next(&mut muxer, &mut room).unwrap();
        muxer.receive(from_guest(&request, Operation::Response), None);
        let mut host = receiver.try_recv().unwrap().unwrap();
        host.write_all(b"hello").unwrap();
        muxer.process_events();
        assert_eq!(next(&mut muxer, &mut room).unwrap().length, 5);
        assert_eq!(&room[..5], b"hello");
        assert_eq!(muxer.counters().to_guest, 5);
    }

    #[test]
    fn a_guest_that_knocks_is_asked_again_at_once() {
        let mut muxer = Muxer::new().unwrap();
        muxer.connect(1024, 10_000, Box::new(|_| ()));
        let mut room = [0; 100];
        let request = next(&mut muxer, &mut room).unwrap();
        muxer.receive(from_guest(&reset(7, 9), Operation::Request), None);
        assert_eq!(next(&mut muxer, &mut room).unwrap().operation, Operation::Reset);
        assert!(!muxer.has_packets(), "it has not answered the first request");
        muxer.receive(from_guest(&request, Operation::Reset), None);
        assert!(!muxer.has_packets());
        muxer.receive(from_guest(&reset(7, 9), Operation::Request), None);
        assert_eq!(next(&mut muxer, &mut room).unwrap().operation, Operation::Reset);
        assert_eq!(next(&mut muxer, &mut room).unwrap().operation, Operation::Request);
    }

    #[test]
    fn a_host_that_closed_is_heard_of_once() {
        let mut muxer = Muxer::new().unwrap();
        let (sender, receiver) = mpsc::channel();
        muxer.connect(9, 1000, Box::new(move |result| sender.send(result).unwrap()));
        let mut room = [0; 8192];
        let request = next(&mut muxer, &mut room).unwrap();
        muxer.receive(from_guest(&request, Operation::Response), None);
        let mut host = receiver.try_recv().unwrap().unwrap();
        // More than the guest has room for.
        host.write_all(&[1; 5000]).unwrap();
        drop(host);
        muxer.process_events();
        assert_eq!(next(&mut muxer, &mut room).unwrap().length, 4096);
        assert!(!muxer.has_packets());
        assert_eq!(muxer.epoll.wait(0, &mut [EpollEvent::default(); 4]).unwrap(), 0);
    }

    #[test]
    fn a_guest_that_never_listens_is_given_up() {
        let mut muxer = Muxer::new().unwrap();
        let (sender, receiver) = mpsc::channel();
        muxer.connect(7, 1, Box::new(move |result| sender.send(result).unwrap()));
        std::thread::sleep(Duration::from_millis(5));
        muxer.process_events();
        let error = receiver.try_recv().unwrap().unwrap_err().to_string();
        assert_eq!(error, "no listener in the guest on vsock port 7 within 1 ms");
        assert_eq!(muxer.counters().connections, 0);
    }

    #[test]
    fn a_guest_that_dials_is_reset_and_cannot_fill_memory() {
        let mut muxer = Muxer::new().unwrap();
        for port in 0..1000 {
            let dial = from_guest(&reset(port, 5), Operation::Request);
            muxer.receive(dial, None);
        }
        let mut room = [0; 10];
        let mut resets = 0;
        while let Some(packet) = next(&mut muxer, &mut room) {
            assert_eq!(packet.operation, Operation::Reset);
            resets += 1;
        }
        assert_eq!(resets, MAX_RESETS);
    }

    #[test]
    fn breaking_the_protocol_ends_only_that_connection() {
        let mut muxer = Muxer::new().unwrap();
        let (sender, receiver) = mpsc::channel();
        let mut room = [0; 100];
        let mut hosts = Vec::new();
        let mut requests = Vec::new();
        for _ in 0..2 {
            let sender = sender.clone();
            muxer.connect(9, 1000, Box::new(move |result| sender.send(result).unwrap()));
            let request = next(&mut muxer, &mut room).unwrap();
            muxer.receive(from_guest(&request, Operation::Response), None);
            hosts.push(receiver.try_recv().unwrap().unwrap());
            requests.push(request);
        }
        muxer.receive(from_guest(&requests[0], Operation::Response), None);
        assert_eq!(next(&mut muxer, &mut room).unwrap().operation, Operation::Reset);
        assert_eq!(hosts[0].read(&mut [0]).unwrap(), 0);
        assert_eq!(muxer.counters().connections, 1);
    }
}
