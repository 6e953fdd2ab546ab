//! Networks that users define: names, aliases, several at once, IPv6.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};

use pouch_tests::engine::eventually;
use pouch_tests::{Engine, EngineContainer, Invocation, engine_tests};

engine_tests! {
    both: names_and_aliases;
    both_long: resolver_by_udp_and_tcp, traffic_between_containers, two_networks, connected_before_the_start,
        connected_while_running, internet_protocol_6, names_of_the_outside_world, multicast;
    docker: names_once_connected;
    docker_28: connected_while_running;
    docker_long: size_of_packets, an_internal_network, names_follow_a_restart;
    docker_28_long: connected_before_the_start, names_once_connected, names_and_aliases, two_networks,
        resolver_by_udp_and_tcp, names_of_the_outside_world, internet_protocol_6;
    podman_long: size_of_packets, an_internal_network, names_follow_a_restart;
}

/// The address of each name as a container sees it, or what `getent` ends with.
fn resolved(container: &EngineContainer, names: &[&str]) -> Vec<String> {
    let script = "for name; do x=$(getent hosts $name) && echo ${x%% *} || echo status $?; done";
    let output = container.exec(&[], &[&["sh", "-c", script, "sh"], names].concat());
    output.ok().lines().map(str::to_owned).collect()
}

fn names_and_aliases(engine: Engine) {
    let network = engine.network(&[]);
    let one = engine.start_idle(&["--network", &network.name, "--network-alias", "first"]);
    let two = engine.start_idle(&["--network", &network.name]);
    let (a, b) = (one.address(&network.name), two.address(&network.name));
    assert!(!a.is_empty() && a != b, "{a} {b}");
    assert_eq!(resolved(&two, &[&one.name, "first", "nobody-of-this-name"]), [a.as_str(), &a, "status 2"]);
    assert_eq!(resolved(&one, &[&two.name, &one.name]), [b, a]);
    let configured = two.sh("ping -c 2 -W 60 first >/dev/null && cat /etc/resolv.conf");
    let resolver = if engine.is_docker() {
        "nameserver 127.0.0.11".to_owned()
    } else {
        let gateway =
            two.inspect(&format!("{{{{(index .NetworkSettings.Networks \"{}\").Gateway}}}}", network.name));
        format!("nameserver {gateway}")
    };
    assert!(configured.contains(&resolver), "{configured}");
}

/// Asks the first name server of /etc/resolv.conf for a name, by UDP and by TCP, through sockets of IPv4 and, as
/// Java does, through those of IPv6. Every answer and peer is to be the address that was asked.
const ASK: &str = r"
import socket, struct, sys
server = next(l.split()[1] for l in open('/etc/resolv.conf') if l.startswith('nameserver'))
name = b''.join(bytes([len(p)]) + p.encode() for p in sys.argv[1].split('.')) + b'\0'
query = struct.pack('>6H', 7, 0x100, 1, 0, 0, 0) + name + struct.pack('>2H', 1, 1)
def address(answer):
    assert struct.unpack('>H', answer[:2])[0] == 7 and struct.unpack('>H', answer[6:8])[0] >= 1, answer
    at = 12 + len(name) + 4
    at += 10 + (2 if answer[at] >= 0xc0 else len(name))
    return socket.inet_ntoa(answer[at:at + 4])
def read(t, n):
    data = b''
    while len(data) < n:
        more = t.recv(n - len(data)); assert more, data
        data += more
    return data
for family, host in (socket.AF_INET, server), (socket.AF_INET6, '::ffff:' + server):
    def check(peer):
        assert peer[:2] == (host, 53), peer
    u = socket.socket(family, socket.SOCK_DGRAM); u.settimeout(60)
    u.sendto(query, (host, 53)); answer, peer = u.recvfrom(4096); check(peer); print(address(answer))
    u.connect((host, 53)); u.send(query); print(address(u.recv(4096))); check(u.getpeername())
    t = socket.socket(family); t.settimeout(60); t.connect((host, 53)); check(t.getpeername())
    t.sendall(struct.pack('>H', len(query)) + query)
    print(address(read(t, struct.unpack('>H', read(t, 2))[0])))";

fn resolver_by_udp_and_tcp(engine: Engine) {
    let network = engine.network(&[]);
    let one = engine.start_idle(&["--network", &network.name, "--network-alias", "first"]);
    let address = one.address(&network.name);
    let output = engine.run(&["--network", &network.name], "python", &["python3", "-c", ASK, "first"]);
    assert_eq!(output.ok().lines().collect::<Vec<_>>(), [&address; 6], "{output}");
}

/// Answers a query: each name has one address, and what begins with `long` has it by TCP only.
fn answer(query: &[u8], by_tcp: bool) -> Vec<u8> {
    let question = &query[12..];
    let end = question.iter().position(|byte| *byte == 0).unwrap();
    let truncated = !by_tcp && question.starts_with(b"\x04long");
    let has_one = !truncated && question[end..].starts_with(b"\0\0\x01");
    let head = [0x85 | u8::from(truncated) << 1, 0x80, 0, 1, 0, has_one.into(), 0, 0, 0, 0];
    let record: &[u8] = if has_one { b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x0a\x09\x08\x07" } else { b"" };
    [&query[..2], &head, &question[..end + 5], record].concat()
}

/// Is a name server on an address of the host until the test's process ends.
fn serve_names(address: &'static str) {
    let (datagrams, streams) =
        (UdpSocket::bind((address, 53)).unwrap(), TcpListener::bind((address, 53)).unwrap());
    std::thread::spawn(move || {
        let mut query = [0; 512];
        loop {
            let (length, peer) = datagrams.recv_from(&mut query).unwrap();
            datagrams.send_to(&answer(&query[..length], false), peer).unwrap();
        }
    });
    std::thread::spawn(move || {
        for stream in streams.incoming() {
            let (mut stream, mut length) = (stream.unwrap(), [0; 2]);
            while stream.read_exact(&mut length).is_ok() {
                let mut query = vec![0; u16::from_be_bytes(length).into()];
                stream.read_exact(&mut query).unwrap();
                let found = answer(&query, true);
                stream.write_all(&[&(found.len() as u16).to_be_bytes()[..], &found].concat()).unwrap();
            }
        }
    });
}

fn names_of_the_outside_world(engine: Engine) {
    // The host's own, on another network than the container's.
    let server = "10.0.2.15";
    serve_names(server);
    let network = engine.network(&[]);
    let container = engine.start_idle(&["--network", &network.name, "--dns", server]);
    // The engine's resolver is asked, which asks that one.
    let configured = container.sh("cat /etc/resolv.conf");
    assert!(!configured.contains(&format!("nameserver {server}")), "{configured}");
    assert_eq!(resolved(&container, &["short.example", "long.example"]), ["10.9.8.7", "10.9.8.7"]);
    assert_eq!(resolved(&container, &[&container.name]), [container.address(&network.name)]);
}

fn traffic_between_containers(engine: Engine) {
    let network = engine.network(&[]);
    let serve = "import socket\ns = socket.create_server(('', 5000))\nprint('ready', flush=True)\n\
        c = s.accept()[0]\nn = 0\nwhile b := c.recv(65536): n += len(b)\nc.sendall(str(n).encode())\nc.close()";
    let server = engine.start(&["--network", &network.name], "python", &["python3", "-c", serve]);
    server.await_logs("ready");
    let send = "import socket, sys\nc = socket.create_connection((sys.argv[1], 5000))\nfor _ in range(100): c.sendall(b'x' * 100000)\n\
        c.shutdown(socket.SHUT_WR)\nprint(c.recv(100).decode())";
    let output = engine.run(&["--network", &network.name], "python", &["python3", "-c", send, &server.name]);
    assert_eq!(output.ok(), "10000000");
    assert_eq!(server.wait(), 0);
}

fn interfaces(container: &EngineContainer) -> String {
    container.sh("ip -o -4 addr | awk '{print $2, $4}'")
}

fn two_networks(engine: Engine) {
    let (front, back) = (engine.network(&[]), engine.network(&[]));
    let (at_front, at_back) =
        (engine.start_idle(&["--network", &front.name]), engine.start_idle(&["--network", &back.name]));
    let both = engine.start_idle(&["--network", &front.name, "--network", &back.name]);
    let text = interfaces(&both);
    for network in [&front, &back] {
        assert!(text.contains(&both.address(&network.name)), "{text}");
    }
    assert_eq!(text.lines().count(), 3, "{text}");
    let (a, b) = (&at_front.name, &at_back.name);
    both.sh(&format!("ping -c 1 -W 60 {a} >/dev/null && ping -c 1 -W 60 {b} >/dev/null"));
    // Each of the others sees its own network only.
    assert_eq!(resolved(&at_front, &[b, &both.name]), ["status 2".to_owned(), both.address(&front.name)]);
}

fn connected_before_the_start(engine: Engine) {
    let (one, two) = (engine.network(&[]), engine.network(&[]));
    let container = engine.create(&["--network", &one.name], "debian", &["sleep", "1000"]);
    engine.command(&["network", "connect", "--alias", "late", &two.name, &container.name]).run().ok();
    container.ok(&["start"]);
    let text = interfaces(&container);
    assert!(
        text.contains(&container.address(&one.name)) && text.contains(&container.address(&two.name)),
        "{text}"
    );
    container.ok(&["kill"]);
    container.await_inspect("{{.State.Status}}", "exited");
    engine.command(&["network", "disconnect", &one.name, &container.name]).run().ok();
    container.ok(&["start"]);
    let text = interfaces(&container);
    assert!(text.contains(&container.address(&two.name)) && text.lines().count() == 2, "{text}");
}

fn connected_while_running(engine: Engine) {
    let (one, two) = (engine.network(&[]), engine.network(&[]));
    let container = engine.start_idle(&["--network", &one.name]);
    engine.command(&["network", "connect", &two.name, &container.name]).run().ok();
    let address = container.address(&two.name);
    assert_ne!(address, "");
    eventually("the interface is there", || interfaces(&container).contains(&address));
    engine.command(&["network", "disconnect", &two.name, &container.name]).run().ok();
    eventually("it is gone", || !interfaces(&container).contains(&address));
}

/// The network that it is started with has no resolver.
fn names_once_connected(engine: Engine) {
    let network = engine.network(&[]);
    let neighbour = engine.start_idle(&["--network", &network.name, "--network-alias", "first"]);
    let container = engine.start_idle(&[]);
    assert_eq!(resolved(&container, &["first"]), ["status 2"]);
    engine.command(&["network", "connect", &network.name, &container.name]).run().ok();
    let addresses = [neighbour.address(&network.name)];
    eventually("the neighbour has a name", || resolved(&container, &["first"]) == addresses);
    container.sh("ping -c 1 -W 60 first >/dev/null");
    assert_eq!(resolved(&neighbour, &[&container.name]), [container.address(&network.name)]);
}

fn internet_protocol_6(engine: Engine) {
    let network = engine.network(&["--ipv6", "--subnet", "fd00:77::/64", "--subnet", "10.77.0.0/24"]);
    let format = format!("{{{{(index .NetworkSettings.Networks \"{}\").GlobalIPv6Address}}}}", network.name);
    let (one, two) = (
        engine.start_idle(&["--network", &network.name, "--network-alias", "first"]),
        engine.start_idle(&["--network", &network.name]),
    );
    let address = one.inspect(&format);
    assert!(address.starts_with("fd00:77::"), "{address}");
    let text = one.sh("ip -o addr show dev eth0; ip -6 route");
    for part in [format!("{address}/64").as_str(), "default via fd00:77::1", "inet 10.77.0."] {
        assert!(text.contains(part), "no {part:?}: {text}");
    }
    let script = format!(
        "ping -c 1 -W 60 fd00:77::1 >/dev/null && ping -c 1 -W 60 {address} >/dev/null && getent ahostsv6 first"
    );
    assert!(two.sh(&script).contains(&address));
    Invocation::of("ping", ["-c", "1", "-W", "60", &address]).run().ok();
}

fn size_of_packets(engine: Engine) {
    let option = if engine.is_docker() { "com.docker.network.driver.mtu=1400" } else { "mtu=1400" };
    let network = engine.network(&["--opt", option, "--subnet", "10.78.0.0/24"]);
    let container = engine.start_idle(&["--network", &network.name, "--ip", "10.78.0.99"]);
    let script = "cat /sys/class/net/eth0/mtu; ip -o -4 addr show dev eth0; ping='ping -c 1 -M do 10.78.0.1'
        $ping -W 60 -s 1372 >/dev/null; echo status $?; $ping -W 1 -s 1400 >/dev/null 2>&1; echo status $?";
    let text = container.sh(script);
    assert!(text.starts_with("1400\n") && text.contains("10.78.0.99/24"), "{text}");
    assert!(text.ends_with("status 0\nstatus 1"), "{text}");
}

fn an_internal_network(engine: Engine) {
    let network = engine.network(&["--internal"]);
    let one = engine.start_idle(&["--network", &network.name, "--network-alias", "first"]);
    let two = engine.start_idle(&["--network", &network.name]);
    two.sh("ping -c 1 -W 60 first >/dev/null");
    assert!(!one.sh("ip route").contains("default"));
}

fn multicast(engine: Engine) {
    let network = engine.network(&["--subnet", "10.79.0.0/24"]);
    let listen = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('', 5007))\n\
        s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton('239.1.2.3') + socket.inet_aton('0.0.0.0'))\n\
        print(s.recv(100).decode(), flush=True)";
    let listener = engine.start(&["--network", &network.name], "python", &["python3", "-c", listen]);
    // A datagram may come too early.
    let send = "import socket, time\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        while True:\n    s.sendto(b'to all', ('239.1.2.3', 5007))\n    time.sleep(0.5)";
    let _sender = engine.start(&["--network", &network.name], "python", &["python3", "-c", send]);
    assert_eq!(listener.wait(), 0);
    assert_eq!(listener.logs(), "to all");
}

fn names_follow_a_restart(engine: Engine) {
    let network = engine.network(&[]);
    let one = engine.start_idle(&["--network", &network.name, "--network-alias", "first"]);
    let two = engine.start_idle(&["--network", &network.name]);
    one.ok(&["restart", "--time", "1"]);
    eventually("it runs again", || one.status() == "running");
    assert_eq!(resolved(&two, &["first"]), [one.address(&network.name)]);
    two.sh("ping -c 1 -W 60 first >/dev/null");
}
