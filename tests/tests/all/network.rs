//! The container's network: what is in the namespace on the host reaches the container.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use pouch_tests::bundle::unique_id;
use pouch_tests::invocation::wait;
use pouch_tests::{Bundle, Container, HANG, Invocation, Leftovers, eventually, processes, vm_only};
use serde_json::{Value, json};

/// A network namespace with a name, as engines and CNI make them.
struct Namespace(String);

/// Has the container join a network namespace.
fn join(bundle: Bundle, path: &str) -> Bundle {
    let mut namespaces = bundle.spec["linux"]["namespaces"].clone();
    let own = |namespace: &Value| namespace["type"] == "network";
    namespaces.as_array_mut().unwrap().retain(|namespace| !own(namespace));
    let bundle = bundle.set("/linux/namespaces", namespaces);
    bundle.push("/linux/namespaces", json!({"type": "network", "path": path}))
}

fn ip(arguments: &str) -> String {
    Invocation::of("ip", arguments.split(' ')).run().ok()
}

impl Namespace {
    fn new() -> Self {
        let name = unique_id();
        ip(&format!("netns add {name}"));
        Namespace(name)
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    /// ip(8) in the namespace.
    fn ip(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.0))
    }

    /// An interface whose other end is the host's, with an IPv4 address at both ends.
    fn veth(&self, name: &str, subnet: u8) {
        let peer = format!("{name}-{}", std::process::id());
        ip(&format!("link add {peer} type veth peer name {name} netns {}", self.0));
        ip(&format!("addr add 10.77.{subnet}.1/24 dev {peer}"));
        ip(&format!("link set {peer} up"));
        self.ip(&format!("addr add 10.77.{subnet}.2/24 dev {name}"));
        self.ip(&format!("link set {name} up"));
    }

    /// An interface eth0 of this kind on one of the host's.
    fn take_child(&self, parent: &str, kind: &str) {
        let name = format!("{parent}-c");
        ip(&format!("link add link {parent} name {name} type {kind}"));
        ip(&format!("link set {name} netns {} name eth0", self.0));
    }

    fn bundle(&self, bundle: Bundle) -> Bundle {
        join(bundle, &self.path())
    }

    fn idle(&self) -> Container {
        self.bundle(Bundle::busybox().args(["sleep", "100000"])).start()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // With it go its ends of veths, and with those the others.
        ip(&format!("netns del {}", self.0));
    }
}

/// The columns of `ip -o` that a test looks at.
fn lines(container: &Container, script: &str) -> Vec<String> {
    let text = container.sh(script);
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn everything_of_the_namespace_is_in_the_container() {
    let namespace = Namespace::new();
    namespace.veth("eth0", 1);
    namespace.veth("net-one", 2);
    namespace.ip("link set eth0 address 02:42:0a:4d:01:02 mtu 1400");
    namespace.ip("addr add fd77::2/64 dev eth0 nodad");
    namespace.ip("addr add 10.77.1.9/32 dev eth0");
    let off = "netns exec NAME sysctl -q -w net.ipv6.conf.net-one.disable_ipv6=1";
    ip(&off.replace("NAME", &namespace.0));
    namespace.ip("route add default via 10.77.1.1");
    namespace.ip("route add 10.99.0.0/16 via 10.77.2.1 dev net-one metric 50");
    namespace.ip("-6 route add default via fd77::1");
    namespace.ip("neigh add 10.77.2.77 lladdr 02:00:00:00:00:77 dev net-one nud permanent");
    namespace.ip("addr add 10.66.0.2 peer 10.66.0.1/32 dev net-one");
    namespace.ip("link set net-one mtu 65535");
    ip(&format!("netns exec {} tc qdisc add dev net-one clsact", namespace.0));
    let container = namespace.idle();
    ping("10.77.2.2");
    assert_eq!(container.sh("cat /sys/class/net/net-one/mtu"), "65535");
    let addresses = lines(&container, "ip -o addr");
    for expected in [
        "eth0 inet 10.77.1.2/24 brd 10.77.1.255 scope global eth0",
        "eth0 inet 10.77.1.9/32 scope global eth0",
        "eth0 inet6 fd77::2/64 scope global",
        "net-one inet 10.77.2.2/24 brd 10.77.2.255 scope global net-one",
        "net-one inet 10.66.0.2 peer 10.66.0.1/32 scope global net-one",
    ] {
        // runc leaves the broadcast address to whoever sets the address.
        let plain = expected.split(" brd ").next().unwrap();
        assert!(addresses.iter().any(|line| line.contains(plain)), "{expected} in {addresses:#?}");
    }
    assert!(!addresses.iter().any(|line| line.contains("net-one inet6")), "{addresses:#?}");
    let routes = lines(&container, "ip route; ip -6 route");
    for expected in [
        "default via 10.77.1.1 dev eth0",
        "10.99.0.0/16 via 10.77.2.1 dev net-one metric 50",
        "10.66.0.1 dev net-one",
        "default via fd77::1 dev eth0",
    ] {
        assert!(routes.iter().any(|line| line.starts_with(expected)), "{expected} in {routes:#?}");
    }
    let of_eth0 = container.sh("cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu");
    assert_eq!(of_eth0, "02:42:0a:4d:01:02\n1400");
    let neighbours = lines(&container, "cat /proc/net/arp");
    assert!(
        neighbours.iter().any(|line| line.contains("10.77.2.77 0x1 0x6 02:00:00:00:00:77")),
        "{neighbours:#?}"
    );
    assert_eq!(container.sh("ls /sys/class/net"), "eth0\nlo\nnet-one");
}

#[test]
fn packets_go_both_ways() {
    let namespace = Namespace::new();
    namespace.veth("eth0", 3);
    let container = namespace.bundle(Bundle::busybox().sh("nc -ll -p 7 -e cat")).start();
    container.sh("ping -c 2 -W 60 10.77.3.1");
    ping("10.77.3.2");
    echo(connect("10.77.3.2:7"));
}

fn connect(address: &str) -> TcpStream {
    let mut stream = None;
    eventually("the server listens", || {
        stream = TcpStream::connect(address).ok();
        stream.is_some()
    });
    stream.unwrap()
}

/// Sends a bridge's MTU and much more than a queue takes, all of which must come back.
fn echo(mut stream: TcpStream) {
    let sent: Vec<u8> = (0..4u32 << 20).map(|index| (index % 251) as u8).collect();
    let (mut writer, bytes) = (stream.try_clone().unwrap(), sent.clone());
    let writing = std::thread::spawn(move || {
        writer.write_all(&bytes).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    writing.join().unwrap();
    assert!(received == sent, "{} of {} bytes came back", received.len(), sent.len());
}

fn ping(address: &str) {
    Invocation::of("ping", ["-c", "2", "-W", "60", address]).run().ok();
}

/// Sends much to a container and back; whether the host's kernel moved it. The container ends with the connection.
fn moved_by_the_kernel(namespace: &Namespace, address: &str, config: &str) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    std::fs::write(&file, config).unwrap();
    let bundle = namespace.bundle(Bundle::busybox().sh("nc -l -p 7 -e cat"));
    let mut child = bundle.run_invocation(&[]).env("POUCH_VM_CONFIG", &file).into_command().spawn().unwrap();
    let stream = connect(address);
    let is_vhost = |pid: i32| {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let mut names = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
        names.any(|name| name.starts_with("vhost-"))
    };
    let moved = processes::all().into_keys().any(is_vhost);
    echo(stream);
    assert_eq!(wait(&mut child, "run", HANG).code(), Some(0));
    moved
}

#[test]
fn the_hosts_kernel_moves_frames_where_it_can() {
    vm_only!();
    const VHOST: &str = "/dev/vhost-net";
    let namespace = Namespace::new();
    namespace.veth("eth0", 11);
    let address = "10.77.11.2:7";
    assert!(moved_by_the_kernel(&namespace, address, ""));
    assert!(!moved_by_the_kernel(&namespace, address, "vhost_net = false"));
    // A device that refuses everything.
    let none: Option<&str> = None;
    mount(Some("/dev/null"), VHOST, none, MsFlags::MS_BIND, none).unwrap();
    let result = std::panic::catch_unwind(|| moved_by_the_kernel(&namespace, address, ""));
    umount2(VHOST, MntFlags::MNT_DETACH).unwrap();
    assert!(!result.unwrap());
}

/// How much of a processor the VMM's event loop takes, from 0 to 1.
fn load(vmm: i32) -> f64 {
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{vmm}/task/{vmm}/stat")).unwrap();
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap()..].split_whitespace().collect();
        fields[12].parse::<f64>().unwrap() + fields[13].parse::<f64>().unwrap()
    };
    // SAFETY: the call takes a number.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    let (start, before) = (Instant::now(), ticks());
    std::thread::sleep(Duration::from_secs(3));
    (ticks() - before) / per_second / start.elapsed().as_secs_f64()
}

#[test]
fn an_interface_without_traffic_takes_no_processor() {
    vm_only!();
    let namespace = Namespace::new();
    namespace.veth("eth0", 12);
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.toml");
    std::fs::write(&config, "vhost_net = false").unwrap();
    let bundle = namespace.bundle(Bundle::busybox().sh("trap 'exit 0' TERM; sleep 100000 & wait"));
    let run = bundle.run_invocation(&[]).env("POUCH_VM_CONFIG", &config);
    let mut child = run.into_command().spawn().unwrap();
    let links = || namespace.ip("-o link show");
    eventually("the VM has its interface", || links().contains("pouch-tap"));
    let pid = child.id() as i32;
    let vmm = processes::descendants(pid)
        .into_iter()
        .find(|pid| processes::find(*pid).is_some_and(|process| process.name.starts_with("pouch-vmm")));
    let vmm = vmm.expect("the VMM is below pouch-vm");
    ping("10.77.12.2");
    eventually("the event loop is idle without traffic", || load(vmm) < 0.2);
    // The tap goes, and the VMM still has it.
    let links = links();
    let tap = links.split([' ', ':', '@']).find(|word| word.starts_with("pouch-tap")).unwrap();
    namespace.ip(&format!("link del {tap}"));
    eventually("it is idle without its tap", || load(vmm) < 0.2);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(wait(&mut child, "run", HANG).code(), Some(0));
}

#[test]
fn what_changes_later_reaches_the_container() {
    let namespace = Namespace::new();
    let bundle = Bundle::busybox().args(["sleep", "100000"]).capable(&["CAP_NET_ADMIN"]);
    let container = namespace.bundle(bundle).start();
    let has = |name: &str| container.exec(&["test", "-e", &format!("/sys/class/net/{name}")]).status == 0;
    namespace.veth("eth0", 4);
    eventually("the first interface is there", || has("eth0"));
    for round in 0..2 {
        namespace.veth("later", 5 + round);
        eventually("the new interface is there", || has("later"));
        let address = format!("10.77.{}.2", 5 + round);
        eventually("it has its address", || container.sh("ip -o addr show dev later").contains(&address));
        ping(&address);
        namespace.ip("link del later");
        eventually("it is gone", || !has("later"));
        ping("10.77.4.2");
    }
    // The container's own stays, whatever goes of what the host had.
    container.sh("ip addr add 10.55.0.1/32 dev eth0");
    let changes = [
        "addr ACT 10.77.4.9/24 dev eth0",
        "route ACT 10.98.0.0/16 via 10.77.4.1 dev eth0",
        "neigh ACT 10.77.4.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent",
    ];
    let shown = || container.sh("ip -o addr; ip route; cat /proc/net/arp");
    let marks = ["10.77.4.9/24", "10.98.0.0/16", "02:00:00:00:00:77"];
    for (change, mark) in changes.iter().zip(marks) {
        namespace.ip(&change.replace("ACT", "add"));
        eventually("it has come", || shown().contains(mark));
    }
    for (change, mark) in changes.iter().zip(marks) {
        namespace.ip(&change.replace("ACT", "del").replace(" nud permanent", ""));
        eventually("it has gone", || !shown().contains(mark));
    }
    assert!(shown().contains("10.55.0.1/32"), "{}", shown());
    ping("10.77.4.2");
}

/// An interface of the host, with another namespace, where 10.77.SUBNET.1 is, at the other end.
fn parent(name: &str, subnet: u8) -> Namespace {
    let far = Namespace::new();
    ip(&format!("link add {name} type veth peer name far netns {}", far.0));
    ip(&format!("link set {name} up"));
    far.ip(&format!("addr add 10.77.{subnet}.1/24 dev far"));
    far.ip("link set far up");
    far
}

/// A program that prints what the first datagram to a multicast group holds.
const LISTEN: &str = r"
import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('', 9999))
s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
             struct.pack('4s4s', socket.inet_aton('239.7.7.7'), socket.inet_aton('10.77.10.2')))
print('listening', flush=True)
print(s.recv(100), flush=True)";

/// A program that sends to the group.
const SEND: &str =
    "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'all', ('239.7.7.7', 9999))";

#[test]
fn multicast_reaches_a_macvlan() {
    let name = format!("mac{}", std::process::id());
    let far = parent(&name, 10);
    far.ip("route add 239.7.7.7 dev far");
    let namespace = Namespace::new();
    namespace.take_child(&name, "macvlan mode bridge");
    namespace.ip("addr add 10.77.10.2/24 dev eth0");
    namespace.ip("link set eth0 up");
    let container = namespace.bundle(Bundle::new("python").args(["python3", "-c", LISTEN])).start();
    container.await_output("listening");
    eventually("the datagram arrives", || {
        Invocation::of("ip", ["netns", "exec", &far.0, "python3", "-c", SEND]).run().ok();
        container.stdout().contains("b'all'")
    });
}

#[test]
fn an_ipvlan_routes() {
    let name = format!("ipv{}", std::process::id());
    let far = parent(&name, 11);
    ip(&format!("addr add 10.77.11.254/24 dev {name}"));
    far.ip("route add 10.77.11.2 via 10.77.11.254");
    let namespace = Namespace::new();
    namespace.take_child(&name, "ipvlan mode l3");
    namespace.ip("addr add 10.77.11.2/24 dev eth0");
    namespace.ip("link set eth0 up");
    namespace.ip("route add default dev eth0");
    let bundle = Bundle::busybox().args(["sleep", "100000"]).capable(&["CAP_NET_RAW"]);
    namespace.bundle(bundle).start().sh("ping -c 1 -W 60 10.77.11.1");
}

#[test]
fn a_namespace_of_its_own_has_loopback_only() {
    let bundle = Bundle::busybox().sh("ls /sys/class/net; ping -c 1 -W 60 127.0.0.1 >/dev/null && echo up");
    let text = bundle.run().ok();
    // The test host's kernel puts the fall-back devices of tunnels into each namespace.
    assert!(text.contains("lo\n") && text.ends_with("up") && !text.contains("eth"), "{text}");
}

#[test]
fn nothing_left_of_a_container_with_a_network() {
    let namespace = Namespace::new();
    namespace.veth("eth0", 8);
    let before_in_namespace = namespace.ip("-br link");
    let _ = std::fs::create_dir("/run/pouch-vm");
    let before = Leftovers::picture();
    let container = namespace.idle();
    container.kill("KILL");
    container.await_status("stopped");
    container.delete();
    drop(container);
    before.check();
    eventually("no tap device is left", || namespace.ip("-br link") == before_in_namespace);
    // The next container takes over what the first did to the interface.
    let container = namespace.idle();
    container.sh("ping -c 1 -W 60 10.77.8.1");
}

#[test]
fn an_interface_that_no_vm_can_have_is_named() {
    vm_only!();
    let namespace = Namespace::new();
    namespace.veth("eth0", 9);
    namespace.ip("tuntap add dev tunnel9 mode tun");
    namespace.ip("addr add 10.78.0.1/24 dev tunnel9");
    let container = namespace.bundle(Bundle::busybox().args(["true"])).create();
    Invocation::new(["start", &container.id]).run().fails_naming(&["tunnel9", "Ethernet"]);
    assert_eq!(container.status(), "created");
    namespace.ip("link del tunnel9");
    Invocation::new(["start", &container.id]).run().ok();
}

#[test]
fn an_interface_too_many_is_named_and_the_start_can_be_tried_again() {
    vm_only!();
    let namespace = Namespace::new();
    for number in 0..9 {
        namespace.veth(&format!("net{number}"), 20 + number);
    }
    let container = namespace.bundle(Bundle::busybox().args(["sleep", "100000"])).create();
    Invocation::new(["start", &container.id]).run().fails_naming(&["net8", "8"]);
    assert_eq!(container.status(), "created");
    namespace.ip("link del net8");
    Invocation::new(["start", &container.id]).run().ok();
    assert_eq!(container.sh("ls -d /sys/class/net/net*").lines().count(), 8);
    ping("10.77.20.2");
    ping("10.77.27.2");
}

#[test]
fn a_tap_device_that_cannot_be_made_is_an_error() {
    vm_only!();
    const TUN: &str = "/dev/net/tun";
    let namespace = Namespace::new();
    namespace.veth("eth0", 10);
    let none: Option<&str> = None;
    mount(Some("/dev/null"), TUN, none, MsFlags::MS_BIND, none).unwrap();
    let container = namespace.bundle(Bundle::busybox().args(["true"])).create();
    let output = Invocation::new(["start", &container.id]).run();
    umount2(TUN, MntFlags::MNT_DETACH).unwrap();
    output.fails_naming(&[TUN, "eth0"]);
    assert_eq!(container.status(), "created");
}

#[test]
fn a_namespace_that_is_not_there_is_named() {
    let gone = "/run/netns/there-is-none-such";
    assert!(!Path::new(gone).exists());
    let bundle = Bundle::busybox().args(["true"]);
    let bundle = bundle.set(
        "/linux/namespaces",
        json!([
            {"type": "pid"}, {"type": "mount"}, {"type": "network", "path": gone},
        ]),
    );
    bundle.run().fails_naming(&[gone]);
}

/// Docker before 25 names the host's namespace for `--network host`: its interfaces must stay the host's.
#[test]
fn the_namespace_of_the_host_is_refused() {
    vm_only!();
    let path = "/proc/1/ns/net";
    let bundle = join(Bundle::busybox().args(["true"]), path);
    bundle.run().fails_naming(&["linux.namespaces", path, "publish ports"]);
    assert!(!ip("link show").contains("ingress"));
}

#[test]
fn the_namespace_can_be_used_when_the_container_has_gone() {
    let namespace = Namespace::new();
    namespace.veth("eth0", 9);
    let reachable = || {
        let ping =
            Invocation::of("ip", ["netns", "exec", &namespace.0, "ping", "-c", "1", "-W", "9", "10.77.9.1"]);
        ping.run().ok();
    };
    reachable();
    let container = namespace.idle();
    assert!(container.sh("ping -c 1 10.77.9.1").contains("1 packets received"));
    container.delete_by_force();
    reachable();
}
