"""The measurements, made inside the testbed. Prints a JSON list of figures; says on stderr what it is doing.

Time is virtual: one nanosecond an instruction, so a figure repeats to about 1 % whatever else the machine does. Waiting
for a disk does not repeat, so everything is in memory: caches are warmed, and files lie in a tmpfs.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time

SHARE = pathlib.Path("/usr/local/share/pouch-vm")
VMM = "/usr/local/libexec/pouch-vm/pouch-vmm"
POD_COUNTS = ("1", "10", "30")
POD_BENCH = "/usr/local/share/pouch-test/pod-bench"
WORK = pathlib.Path("/tmp/bench")
ROUNDS = 5
AGENT_PORT = 1024
MIB = 1 << 20
# Of virtual time: many boots. The first one reads from the testbed's disk, for which the clock jumps.
BOOT_SECONDS = 10


def say(text):
    """Tell what is going on."""
    print(f"make bench: {text}", file=sys.stderr, flush=True)


def figure(name, value, unit, peer=None, peer_value=None):
    """One entry of the result."""
    ratio = value / peer_value if peer_value else None
    return {"name": name, "value": value, "unit": unit, "peer": peer, "peer_value": peer_value, "ratio": ratio}


def median(measure, rounds=ROUNDS):
    """The median of some runs of `measure`, after one that warms the caches."""
    measure()
    return statistics.median(measure() for _ in range(rounds))


def elapsed_ms(command, **options):
    """How long a command takes, in ms."""
    start = time.monotonic_ns()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **options)
    return (time.monotonic_ns() - start) / 1e6


# --- boot ---------------------------------------------------------------------------------------------------------

def boot():
    """From the VMM's exec until the agent answers, beside QEMU's microvm with the same kernel and guest root."""
    say("booting guests")
    reports = []

    def ours():
        output = subprocess.run(["pouch-vm", "check", "--format", "json"], check=True, stdout=subprocess.PIPE).stdout
        reports.append(json.loads(output))
        return reports[-1]["answer_ms"]

    total = median(ours)
    kernel, agent, touched = (
        statistics.median(report[part] for report in reports[1:])
        for part in ("guest_kernel_ms", "agent_ms", "guest_memory_bytes"))
    peer = median(microvm_ms)
    return [
        figure("boot-to-agent", total, "ms", "QEMU microvm", peer),
        figure("boot-to-agent: guest kernel", kernel, "ms"),
        figure("boot-to-agent: agent until ready", agent, "ms"),
        figure("boot-to-agent: VMM and request", total - kernel - agent, "ms"),
        figure("boot-to-agent: of these, system-call filters", boot_ms() - boot_ms("--no-seccomp"), "ms"),
        figure("memory-guest-at-agent-ready", touched / MIB, "MiB"),
    ]


def boot_ms(*options):
    """From exec until the agent answers, of a VMM that a shell starts with these options."""
    starter, config = WORK / "vmm", WORK / "vmm.toml"
    starter.write_text(f'#!/bin/sh\nexec {VMM} "$@" {" ".join(options)}\n')
    starter.chmod(0o755)
    config.write_text(f'vmm = "{starter}"\n' + pathlib.Path(os.environ["POUCH_VM_CONFIG"]).read_text())

    def one():
        words = ["pouch-vm", "check", "--format", "json"]
        output = subprocess.run(words, check=True, stdout=subprocess.PIPE, env={**os.environ, "POUCH_VM_CONFIG": config})
        return json.loads(output.stdout)["answer_ms"]

    return median(one)


MICROVM = [
    "qemu-system-x86_64", "-M", "microvm,acpi=off,pic=off,pit=off,rtc=off,isa-serial=off", "-accel", "kvm", "-cpu", "host",
    "-m", "256", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
    "-kernel", str(SHARE / "vmlinux"),
    "-append", "panic=-1 reboot=t tsc=reliable no_timer_check random.trust_cpu=on noreplace-smp root=/dev/vda "
               "rootfstype=erofs ro init=/init cgroup_no_v1=all rcupdate.rcu_expedited=1 quiet 8250.nr_uarts=0",
    "-drive", f"id=root,file={SHARE / 'guest-root.erofs'},format=raw,if=none,readonly=on",
    "-device", "virtio-blk-device,drive=root", "-device", "vhost-vsock-device,guest-cid=77",
]


def microvm_ms():
    """From QEMU's exec until the agent's port takes a connection, in ms."""
    start = time.monotonic_ns()
    process = subprocess.Popen(MICROVM, stdin=subprocess.DEVNULL)
    try:
        while True:
            with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as connection:
                # Waits in the kernel until the guest's driver is there.
                connection.settimeout(1)
                try:
                    connection.connect((77, AGENT_PORT))
                    return (time.monotonic_ns() - start) / 1e6
                except OSError:
                    if process.poll() is not None or time.monotonic_ns() - start > BOOT_SECONDS * 1e9:
                        raise
            time.sleep(0.0005)
    finally:
        process.kill()
        process.wait()


# --- run ----------------------------------------------------------------------------------------------------------

def bundle(name, arguments, image="busybox"):
    """A bundle of a test image that runs `arguments`."""
    folder = WORK / name
    if not (folder / "rootfs").exists():
        folder.mkdir(parents=True)
        shutil.copytree(f"/var/lib/pouch-test/images/{image}/rootfs", folder / "rootfs", symlinks=True)
    (folder / "config.json").unlink(missing_ok=True)
    subprocess.run(["pouch-vm", "spec"], cwd=folder, check=True)
    change(folder, lambda spec: spec["process"].update(terminal=False, args=arguments))
    return folder


def change(folder, act):
    """Change a bundle's configuration."""
    path = folder / "config.json"
    spec = json.loads(path.read_text())
    act(spec)
    path.write_text(json.dumps(spec))


RUNTIMES = {
    "runc": ["runc"],
    "crun": ["crun"],
    "runsc": ["runsc", "--network=none", "--ignore-cgroups"],
}


def run():
    """A container of busybox that does nothing, from exec to exit."""
    folder = bundle("true", ["true"])
    say("running `true` under pouch-vm")
    ours = median(lambda: elapsed_ms(["pouch-vm", "run", "--bundle", folder, "bench"]))
    figures = []
    for peer, words in RUNTIMES.items():
        say(f"running `true` under {peer}")
        theirs = median(lambda words=words: elapsed_ms([*words, "run", "--bundle", folder, "bench"]))
        figures.append(figure(f"run-true beside {peer}", ours, "ms", peer, theirs))
    return figures


# --- memory -------------------------------------------------------------------------------------------------------

def memory():
    """Host memory of an idle container, without the guest's own."""
    say("measuring the memory of an idle container")
    folder = bundle("idle", ["sleep", "100000"])
    subprocess.run(["pouch-vm", "create", "--bundle", folder, "bench"], check=True, stdin=subprocess.DEVNULL,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.run(["pouch-vm", "start", "bench"], check=True)
    time.sleep(2)
    state = json.loads(subprocess.run(["pouch-vm", "state", "bench"], check=True, stdout=subprocess.PIPE).stdout)
    host, guest = 0, 0
    for pid in family(state["pid"]):
        ours, theirs = memory_of(pid)
        host, guest = host + ours, guest + theirs
    subprocess.run(["pouch-vm", "delete", "--force", "bench"], check=True)
    return [figure("memory-host-idle-mib", host / MIB, "MiB"), figure("memory-guest-idle", guest / MIB, "MiB")]


def family(pid):
    """A process and its descendants."""
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid] + [grandchild for child in children for grandchild in family(int(child))]


def memory_of(pid):
    """Bytes of the process's share of its pages (PSS), and of the guest's pages that it maps (RSS)."""
    ours = theirs = 0
    is_guest = False
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            # The guest root is mapped from a mount of its own, where its path is "/".
            is_guest = "pouch-vm-memory" in line or line.split(maxsplit=5)[5:] == ["/"]
        elif line.startswith("Rss:") and is_guest:
            theirs += int(line.split()[1]) << 10
        elif line.startswith("Pss:") and not is_guest:
            ours += int(line.split()[1]) << 10
    return ours, theirs


# --- disk ---------------------------------------------------------------------------------------------------------

DATA_MIB = 64
FIO = {
    "sequential read": ["--rw=read", "--bs=128k", f"--size={DATA_MIB}M"],
    "random read of 4 KiB": ["--rw=randread", "--bs=4k", f"--size={DATA_MIB}M", "--io_size=8M", "--randseed=1"],
}


def fio_words(options, path):
    """fio's command line: every read goes to the disk, past the page cache."""
    return ["fio", "--name=bench", f"--filename={path}", "--direct=1", "--ioengine=psync", "--output-format=json", *options]


def mib_per_second(output):
    """The throughput that fio measured, by the clock of where it ran."""
    return json.loads(output)["jobs"][0]["read"]["bw_bytes"] / MIB


def disk():
    """Reads from virtio-fs and virtio-blk, beside the same fio on the host, all from memory."""
    say("making a root with fio")
    folder = bundle("disk", ["true"])
    root = folder / "rootfs"
    copy_program("fio", root)
    with open(root / "data", "wb") as data:
        for _ in range(DATA_MIB):
            data.write(os.urandom(MIB))
    image = folder / "root.ext4"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, image, f"{2 * DATA_MIB + 64}M"], check=True)
    figures = []
    for name, options in FIO.items():
        say(f"{name}: on the host, on virtio-fs, on virtio-blk")
        host = median(lambda o=options: mib_per_second(output_of(fio_words(o, root / "data"))), 3)
        for device, path in (("virtio-fs", "rootfs"), ("virtio-blk", str(image))):
            change(folder, lambda spec, o=options, p=path: (
                spec["process"].update(args=fio_words(o, "/data")), spec["root"].update(path=p, readonly=False)))
            value = median(lambda: mib_per_second(output_of(["pouch-vm", "run", "--bundle", folder, "bench"])), 3)
            figures.append(figure(f"{device}: {name}", value, "MiB/s", "the host itself", host))
    return figures


def output_of(command):
    """What a command writes."""
    return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout


def copy_program(name, root):
    """Copy a program of the host and its libraries into `root`."""
    program = shutil.which(name)
    libraries = re.findall(r"(/\S+)", subprocess.run(["ldd", program], check=True, stdout=subprocess.PIPE, text=True).stdout)
    for path in [program, *libraries]:
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


# --- stream -------------------------------------------------------------------------------------------------------

STREAM_MIB = 64


def stream():
    """A container's output through vsock and the host process, beside runc's pipe."""
    say("streaming a container's output")
    folder = bundle("stream", ["dd", "if=/dev/zero", "bs=64k", f"count={STREAM_MIB * 16}"])
    # Threads take turns here, and no two runs take the same: single ones are 5 % apart.
    ours = median(lambda: stream_mib_per_second(["pouch-vm"], folder), 11)
    theirs = median(lambda: stream_mib_per_second(["runc"], folder), 3)
    return [figure("vsock stream: a container's output", ours, "MiB/s", "runc's pipe", theirs)]


def stream_mib_per_second(words, folder):
    """The throughput from the first byte to the last."""
    command = [*words, "run", "--bundle", folder, "bench"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        received, start = 0, 0
        while chunk := os.read(process.stdout.fileno(), MIB):
            start = start or time.monotonic_ns()
            received += len(chunk)
        seconds = (time.monotonic_ns() - start) / 1e9
    if process.returncode or received != STREAM_MIB * MIB:
        raise RuntimeError(f"{command} ended with {process.returncode} after {received} bytes")
    return received / MIB / seconds


# --- docker -------------------------------------------------------------------------------------------------------

DOCKER_ROUNDS = 24


def docker():
    """`docker run --rm` of busybox that does nothing, under each runtime."""
    if "POUCH_TESTBED" not in os.environ:
        sys.exit("measure.py: the part `docker` mounts over /var/lib/docker and replaces /etc/docker/daemon.json: in a testbed only")
    say("starting dockerd, whose files are in memory")
    archive = WORK / "busybox.tar"
    subprocess.run(["skopeo", "copy", "--quiet", "oci:/var/lib/pouch-test/oci:docker.io/pouch-test/busybox:latest",
                    f"docker-archive:{archive}:pouch-test/busybox:latest"], check=True, stdout=sys.stderr)
    for folder in ("/var/lib/docker", "/var/lib/containerd"):
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    paths = {name: {"path": shutil.which(name)} for name in ("pouch-vm", "crun", "runsc")}
    # Its network cannot be had here: it looks for it before Docker has attached it.
    paths["runsc"]["runtimeArgs"] = RUNTIMES["runsc"][1:]
    pathlib.Path("/etc/docker/daemon.json").write_text(json.dumps({"storage-driver": "overlay2", "runtimes": paths}))
    subprocess.run(["/run/testbed/engines", "start"], check=True, stdout=sys.stderr)
    subprocess.run(["docker", "load", "--quiet", "--input", archive], check=True, stdout=sys.stderr)

    def one(runtime):
        say(f"docker run --rm under {runtime}")
        command = ["docker", "run", "--rm", "--runtime", runtime, "pouch-test/busybox", "true"]
        elapsed_ms(command)
        # An engine waits for this and that, each time for another time, and that only adds: with the median one
        # bench differs from the next by up to 6 %, with the mean of the faster half by less than 3.
        times = sorted(elapsed_ms(command) for _ in range(DOCKER_ROUNDS))
        return statistics.fmean(times[:DOCKER_ROUNDS // 2])

    ours = one("pouch-vm")
    return [figure(f"docker-run-true beside {peer}", ours, "ms", peer, one(peer)) for peer in RUNTIMES]


# --- pods ---------------------------------------------------------------------------------------------------------

def pods():
    """Pods of containerd's CRI plugin: until the first container runs, a second one, and the end."""
    if "POUCH_TESTBED" not in os.environ:
        sys.exit("measure.py: the part `pods` mounts over /var/lib/cri-1.7 and needs the testbed's images: in a testbed only")
    say("starting containerd with its CRI plugin, whose files are in memory")
    folder = pathlib.Path("/var/lib/cri-1.7")
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)

    def one(handler):
        say(f"pods under {handler}")
        output = subprocess.run([POD_BENCH, "time", handler, str(ROUNDS)], check=True, stdout=subprocess.PIPE).stdout
        return {name: statistics.median(times) for name, times in json.loads(output).items()}

    ours, theirs = one("pouch-vm"), one("runc")
    names = {"first": "pod until its first container runs", "second": "second container of a pod", "end": "end of a pod"}
    figures = [figure(text, ours[name], "ms", "runc", theirs[name]) for name, text in names.items()]
    say("the memory of idle pods")
    output = subprocess.run([POD_BENCH, "memory", *POD_COUNTS], check=True, stdout=subprocess.PIPE).stdout
    for size in json.loads(output):
        which = "one idle pod" if size["pods"] == 1 else f"each of {size['pods']} idle pods"
        figures.append(figure(f"memory-host of {which}", size["processes"] / 1024, "MiB"))
        figures.append(figure(f"memory-guest of {which}", size["guest"] / 1024, "MiB"))
    return figures


# --- network ------------------------------------------------------------------------------------------------------

NETWORK_MIB = 32
CONNECTIONS = 5
ROUND_TRIPS = 200
# A server that counts what it gets, or sends each byte back; and the client that measures it.
TCP = """
import socket, sys, time
def serve():
    server = socket.create_server(("", 7))
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if connection.recv(1) == b"E":
            while byte := connection.recv(1): connection.sendall(byte)
        else:
            while connection.recv(1 << 18): pass
            connection.sendall(b".")
def measure(address, mib, trips):
    with socket.create_connection((address, 7)) as s:
        block, start = bytes(1 << 18), time.monotonic_ns()
        s.sendall(b"T")
        for _ in range(mib * 4): s.sendall(block)
        s.shutdown(socket.SHUT_WR); s.recv(1)
        rate = mib / (time.monotonic_ns() - start) * 1e9
    with socket.create_connection((address, 7)) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        s.sendall(b"E")
        start = time.monotonic_ns()
        for _ in range(trips): s.sendall(b"."); s.recv(1)
        return rate, (time.monotonic_ns() - start) / trips / 1000
"""


def network():
    """TCP between the host and a container, and between two containers, beside runc."""
    words = ["ip", "link", "add", "bench0", "type", "bridge"]
    subprocess.run(words, check=True)
    subprocess.run(["ip", "addr", "add", "10.79.0.1/24", "dev", "bench0"], check=True)
    subprocess.run(["ip", "link", "set", "bench0", "up"], check=True)
    results = {runtime: tcp_figures(runtime) for runtime in ("pouch-vm", "runc")}
    figures = []
    for index, (name, unit) in enumerate((("throughput", "MiB/s"), ("round trip of a byte", "us"))):
        for way in ("host to container", "container to container"):
            ours, theirs = (results[runtime][way][index] for runtime in ("pouch-vm", "runc"))
            figures.append(figure(f"TCP {name}: {way}", ours, unit, "runc", theirs))
    return figures


def middles(rows):
    """The median of each column."""
    return tuple(statistics.median(column) for column in zip(*rows))


def tcp_figures(runtime):
    """Throughput and round trip by the way that the bytes go."""
    say(f"TCP under {runtime}")
    scope = {}
    exec(TCP, scope)  # pylint: disable=exec-used
    arguments = (NETWORK_MIB, ROUND_TRIPS)
    with container_on_network(runtime, 2, TCP + "serve()") as server:
        server.stdout.readline()
        outside = middles([scope["measure"]("10.79.0.2", *arguments) for _ in range(CONNECTIONS)])
        client = TCP + f"for _ in range({CONNECTIONS}): print(*measure('10.79.0.2', {arguments[0]}, {arguments[1]}), flush=True)"
        with container_on_network(runtime, 3, client) as process:
            inside = middles([map(float, process.stdout.readline().split()) for _ in range(CONNECTIONS)])
            process.wait()
    return {"host to container": outside, "container to container": inside}


@contextlib.contextmanager
def container_on_network(runtime, number, program):
    """A container that runs a Python program at 10.79.0.`number`."""
    name = f"bench{number}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    veth = ["ip", "link", "add", f"v{name}", "master", "bench0", "type", "veth", "peer", "name", "eth0", "netns", name]
    subprocess.run(veth, check=True)
    subprocess.run(["ip", "link", "set", f"v{name}", "up"], check=True)
    subprocess.run(["ip", "-n", name, "addr", "add", f"10.79.0.{number}/24", "dev", "eth0"], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "eth0", "up"], check=True)
    folder = bundle(name, ["python3", "-c", program], image="python")
    change(folder, lambda spec: spec["linux"].update(namespaces=[
        {"type": kind} if kind != "network" else {"type": kind, "path": f"/run/netns/{name}"}
        for kind in ("pid", "mount", "ipc", "uts", "cgroup", "network")]))
    command = [runtime, "run", "--bundle", folder, name]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        subprocess.run([runtime, "delete", "--force", name], check=False)
        process.wait()
        # The kernel takes its time over a namespace; the next container wants the interface's name at once.
        subprocess.run(["ip", "link", "del", f"v{name}"], check=True)
        subprocess.run(["ip", "netns", "del", name], check=True)


# --- files --------------------------------------------------------------------------------------------------------

UNTAR = "tar -C /tree -xf /tree.tar"
BUILD = "python3 -m compileall -q -f /tree"


def files():
    """Many small files on the root file system: an untar, and then a compilation of them all."""
    say("making a tree of files")
    folder = bundle("files", ["true"], image="python")
    root = folder / "rootfs"
    library = next(path for path in (root / "usr/lib").glob("python3.*") if (path / "asyncio").exists())
    subprocess.run(["tar", "-C", library, "-cf", root / "tree.tar", "asyncio", "email", "json", "http", "xml"], check=True)
    (root / "tree").mkdir()
    figures = []
    for name, script in (("untar", UNTAR), ("build", BUILD)):
        change(folder, lambda spec, s=script: (
            spec["process"].update(args=["sh", "-c", inner_clock(s)]), spec["root"].update(readonly=False)))
        values = {}
        for runtime, words in {"pouch-vm": ["pouch-vm"], "runc": ["runc"], "runsc": RUNTIMES["runsc"]}.items():
            say(f"{name} under {runtime}")
            command = [*words, "run", "--bundle", folder, "bench"]
            values[runtime] = median(lambda c=command: float(output_of(c).split()[-1]), 3)
        for peer in ("runc", "runsc"):
            figures.append(figure(f"{name} of a tree beside {peer}", values["pouch-vm"], "ms", peer, values[peer]))
    return figures


def inner_clock(script):
    """The script, followed by the milliseconds that it took by the clock of where it ran."""
    stamp = "python3 -c 'import time; print(time.monotonic_ns())'"
    return f"a=$({stamp}); {script}; sync; b=$({stamp}); echo $(((b - a) / 1000000))"


PARTS = {"boot": boot, "run": run, "memory": memory, "disk": disk, "stream": stream, "docker": docker, "pods": pods,
         "network": network, "files": files}


def main(names):
    """Measure what is asked for, or everything."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    WORK.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", WORK], check=True)
    (WORK / "config.toml").write_text(f"boot_timeout_seconds = {BOOT_SECONDS}\n")
    os.environ["POUCH_VM_CONFIG"] = str(WORK / "config.toml")
    figures = [entry for name in names or PARTS for entry in PARTS[name]()]
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
