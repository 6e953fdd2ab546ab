//! The network that a container gets without further words, published ports, and `--network`'s special values.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};

use pouch_tests::bundle::unique_id;
use pouch_tests::engine::eventually;
use pouch_tests::{Difference, Engine, EngineContainer, Invocation, engine_tests};

engine_tests! {
    both: addresses_and_routes, published_ports;
    both_long: outward, of_another_container, network_after_a_restart, none, host, of_one_without_a_vm, addresses_by_hand;
    docker_28: published_ports;
    docker_28_long: addresses_and_routes, outward, of_another_container, network_after_a_restart, none, host,
        of_one_without_a_vm;
}

/// The engine's own network.
pub fn default_network(engine: Engine) -> &'static str {
    if engine.is_docker() { "bridge" } else { "podman" }
}

/// The MAC address that the engine says a container has.
fn hardware_address(container: &EngineContainer, network: &str) -> String {
    container.inspect(&format!("{{{{(index .NetworkSettings.Networks \"{network}\").MacAddress}}}}"))
}

fn gateway(container: &EngineContainer, network: &str) -> String {
    container.inspect(&format!("{{{{(index .NetworkSettings.Networks \"{network}\").Gateway}}}}"))
}

fn addresses_and_routes(engine: Engine) {
    let container = engine.start_idle(&[]);
    let network = default_network(engine);
    let (address, gateway) = (container.address(network), gateway(&container, network));
    let text = container.sh("ip -o -4 address show dev eth0; ip link show dev eth0; ip route");
    assert!(text.contains(&format!("inet {address}/16")), "{address}: {text}");
    assert!(text.contains(&format!("link/ether {}", hardware_address(&container, network))), "{text}");
    assert!(text.contains("mtu 1500") && text.contains("UP"), "{text}");
    assert!(text.contains(&format!("default via {gateway} dev eth0")), "{text}");
    // The gateway is the host's end of the bridge, so this is traffic both ways: packets of the full size,
    // and larger ones that must be cut.
    container.sh(&format!(
        "set -e; exec >/dev/null; ping -c 2 -W 60 {gateway}; getent hosts localhost; ping -c 1 -W 60 127.0.0.1
        ping -c 1 -W 60 -M do -s 1472 {gateway}; ping -c 1 -W 60 -s 5000 {gateway}"
    ));
    // And from the host.
    Invocation::of("ping", ["-c", "1", "-W", "60", &address]).run().ok();
}

const SERVER: &str = "
import os, signal, socket, threading
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
t = socket.create_server(('', 80)); u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('', 80))
def udp():
    while True:
        data, peer = u.recvfrom(65536)
        u.sendto(data.upper(), peer)
threading.Thread(target=udp, daemon=True).start()
print('ready', flush=True)
def serve(s):
    with s:
        while data := s.recv(65536): s.sendall(data.upper())
while True: threading.Thread(target=serve, args=[t.accept()[0]], daemon=True).start()";

/// A container that sends everything back in capitals.
fn server(engine: Engine, options: &[&str]) -> EngineContainer {
    let container = engine.start(options, "python", &["python3", "-c", SERVER]);
    container.await_logs("ready");
    container
}

/// Sends so much through a connection, and checks that it comes back in capitals.
fn echo(address: &str, bytes: usize) {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut sender = stream.try_clone().unwrap();
    let thread = std::thread::spawn(move || {
        sender.write_all(&b"payload.".repeat(bytes / 8)).unwrap();
        sender.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    thread.join().unwrap();
    assert!(received == b"PAYLOAD.".repeat(bytes / 8), "{} bytes came back", received.len());
}

fn published_ports(engine: Engine) {
    let container = server(engine, &["-p", "8080:80", "-p", "127.0.0.1:8081:80", "-p", "8082:80/udp"]);
    let listed = container.ok(&["port"]);
    assert!(
        listed.contains("8080") && listed.contains("127.0.0.1:8081") && listed.contains("80/udp"),
        "{listed}"
    );
    echo("127.0.0.1:8080", 2_000_000);
    echo("127.0.0.1:8081", 8);
    echo("10.0.2.15:8080", 8);
    echo(&format!("{}:80", container.address(default_network(engine))), 2_000_000);
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    let mut buffer = [0; 100];
    eventually("a datagram comes back", || {
        socket.send_to(b"datagram", "10.0.2.15:8082").unwrap();
        socket.recv(&mut buffer).is_ok_and(|size| &buffer[..size] == b"DATAGRAM")
    });
    container.ok(&["stop"]);
    assert!(TcpStream::connect("127.0.0.1:8080").is_err(), "nobody listens any more");
}

fn outward(engine: Engine) {
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        stream.write_all(b"from the host\n").unwrap();
        peer
    });
    // The host's own address on another network than the container's.
    let script = format!("exec 3<>/dev/tcp/10.0.2.15/{port}; cat <&3");
    let output = engine.run(&[], "debian", &["bash", "-c", &script]);
    assert_eq!(output.ok(), "from the host");
    thread.join().unwrap();
}

fn none(engine: Engine) {
    let output = engine.sh(&["--network", "none"], "ls /sys/class/net; ip -o addr | wc -l; ip route | wc -l; ping -c 1 127.0.0.1 >/dev/null && echo loop");
    let text = output.ok();
    assert!(text.starts_with("lo\n") && text.ends_with("\n0\nloop"), "{output}");
    assert!(!text.contains("eth"), "{output}");
}

fn host(engine: Engine) {
    let output = engine.sh(&["--network", "host"], "ip -o -4 addr");
    if Difference::HostNetwork.with_vm() && output.status != 0 {
        return output.fails_naming(&["network", "host", "publish ports"]);
    }
    assert!(output.ok().contains("10.0.2.15"), "{output}");
}

fn of_another_container(engine: Engine) {
    let one = server(engine, &[]);
    let network = format!("container:{}", one.name);
    let output = engine.run(
        &["--network", &network],
        "debian",
        &["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/80; echo hello >&3; read -r x <&3; echo $x"],
    );
    if Difference::ContainerNetwork.with_vm() && output.status != 0 {
        output.fails_naming(&["network", "container", "connect both containers"]);
    } else {
        assert_eq!(output.ok(), "HELLO");
    }
    echo(&format!("{}:80", one.address(default_network(engine))), 8);
}

/// One of the engine's default runtime, from which the VM would take the network.
fn of_one_without_a_vm(engine: Engine) {
    let one = EngineContainer::named(engine, &unique_id());
    let arguments = ["run", "--detach", "--name", &one.name, "pouch-test/python", "python3", "-c", SERVER];
    engine.command(&arguments).run().ok();
    one.await_logs("ready");
    let output = engine.sh(&["--network", &format!("container:{}", one.name)], "echo shared");
    if Difference::ContainerNetwork.with_vm() {
        output.fails_naming(&["network", "connect both containers"]);
    } else {
        assert_eq!(output.ok(), "shared");
    }
    echo(&format!("{}:80", one.address(default_network(engine))), 8);
}

fn addresses_by_hand(engine: Engine) {
    let mac = "02:42:0a:0b:0c:0d";
    let container = engine.start_idle(&["--mac-address", mac]);
    assert_eq!(container.sh("cat /sys/class/net/eth0/address"), mac);
    container.sh(&format!("ping -c 1 -W 60 {} >/dev/null", gateway(&container, default_network(engine))));
}

fn network_after_a_restart(engine: Engine) {
    let container = server(engine, &["-p", "8080:80"]);
    echo("127.0.0.1:8080", 8);
    container.ok(&["restart", "--time", "1"]);
    eventually("it serves again", || container.logs().matches("ready").count() == 2);
    echo("127.0.0.1:8080", 8);
    let text = container.inspect("{{json .NetworkSettings.Networks}}");
    assert!(text.contains(&container.address(default_network(engine))), "{text}");
}
