"""Tries what a container can use of its kernel; prints a line `GROUP | THING | yes` or `no` for each.

Tools that the image lacks are those of the host, bound at /tools.
"""

import ctypes
import errno
import os
import pathlib
import shlex
import shutil
import socket
import struct
import subprocess

LIBRARIES = "/tools/usr/lib/x86_64-linux-gnu"
TOOLS = dict(os.environ, PATH=os.environ["PATH"] + ":/tools/usr/sbin:/tools/usr/bin", LD_LIBRARY_PATH=LIBRARIES,
             XTABLES_LIBDIR=LIBRARIES + "/xtables")
libc = ctypes.CDLL(None, use_errno=True)


def say(group, thing, there):
    print(group, thing, "yes" if there else "no", sep=" | ", flush=True)


def succeeds(command):
    """Whether a command, in words of a shell without its operators, ends with 0."""
    # The path is that of the tools, which a program of the image does not search.
    words = shlex.split(command)
    words[0] = shutil.which(words[0], path=TOOLS["PATH"]) or words[0]
    return subprocess.run(words, env=TOOLS, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, timeout=600, check=False).returncode == 0


def shell(script):
    """Whether all commands of a script, joined by `&&`, succeed."""
    return all(succeeds(command) for command in script.split(" && "))


def no_error(function, *arguments):
    try:
        function(*arguments)
    except OSError:
        return False
    return True


def call(number, *arguments):
    """The errno of a system call, or 0."""
    ctypes.set_errno(0)
    words = [ctypes.c_long(word) for word in arguments + (0,) * (6 - len(arguments))]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result > 2 and number in OPENING:
        os.close(result)
    return 0 if result != -1 else ctypes.get_errno()


# With arguments that are refused, or with which nothing is done.
BAD, ME = -1, os.getpid()
OPENING = (294, 319, 323, 425, 428, 430, 434, 447)
CALLS = {
    "acct": (163, BAD), "add_key": (248, BAD, BAD), "bpf": (321, BAD), "cachestat": (451, BAD, BAD, BAD), "clone3": (435,),
    "close_range": (436, 5, 4), "copy_file_range": (326, BAD, 0, BAD), "delete_module": (176, BAD), "epoll_pwait2": (441, BAD),
    "faccessat2": (439, BAD, BAD), "fanotify_init": (300, BAD), "fchmodat2": (452, BAD, BAD), "fsopen": (430, BAD),
    "futex_waitv": (449, BAD), "get_mempolicy": (239,), "init_module": (175, BAD, 0, BAD), "inotify_init1": (294, BAD),
    "io_setup": (206,), "io_uring_setup": (425, 0, BAD), "ioperm": (173,), "iopl": (172,), "kcmp": (312, ME, ME, 1),
    "kexec_load": (246, 0, 0, 0, BAD), "keyctl": (250, 99), "landlock_create_ruleset": (444, BAD), "listmount": (458, BAD, BAD),
    "lsm_get_self_attr": (459, 0, BAD, BAD), "map_shadow_stack": (453,), "mbind": (237, 1), "membarrier": (324,),
    "memfd_create": (319, BAD, BAD), "memfd_secret": (447, BAD), "migrate_pages": (256,), "modify_ldt": (154,),
    "mount_setattr": (442, BAD, BAD, 0, BAD), "move_pages": (279,), "mq_open": (240, BAD), "mseal": (462, 1),
    "name_to_handle_at": (303, BAD, BAD, BAD, BAD), "open_tree": (428, BAD, BAD), "perf_event_open": (298, BAD, 0, BAD, BAD),
    "pidfd_getfd": (438, BAD), "pidfd_open": (434, BAD), "pkey_alloc": (330, BAD, BAD), "process_madvise": (440, BAD),
    "process_mrelease": (448, BAD), "process_vm_readv": (310, ME), "quotactl": (179, BAD, BAD, 0, BAD),
    "request_key": (249, BAD, BAD), "rseq": (334, 0, 0, BAD), "set_mempolicy": (238,), "set_mempolicy_home_node": (450, 1),
    "statmount": (457, BAD, BAD), "statx": (332, BAD, BAD, BAD, 0, BAD), "swapoff": (168, BAD), "sysfs": (139, BAD),
    "syslog": (103, BAD), "timerfd_create": (283, BAD, BAD), "userfaultfd": (323, BAD), "ustat": (136, 0, BAD),
}


def system_calls():
    for name, (number, *arguments) in CALLS.items():
        say("System calls", name, call(number, *arguments) != errno.ENOSYS)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    page = libc.mmap(None, 4096, 3, 0x22, -1, 0)
    name = ctypes.create_string_buffer(b"x")
    for text, arguments in {
            "PR_SET_VMA_ANON_NAME": (0x53564d41, 0, page, 4096, ctypes.addressof(name)), "PR_GET_TSC": (25, page),
            "PR_SET_MDWE": (66,), "PR_SYSCALL_USER_DISPATCH_OFF": (59,), "PR_GET_TID_ADDRESS": (40, page),
            "PR_SET_MEMORY_MERGE": (68,), "PR_MCE_KILL_GET": (34,)}.items():
        say("System calls", "prctl " + text, call(157, *arguments) == 0)
    for text, advice in {"MADV_FREE": 8, "MADV_HUGEPAGE": 14, "MADV_MERGEABLE": 12, "MADV_WIPEONFORK": 18, "MADV_COLD": 20,
                         "MADV_PAGEOUT": 21, "MADV_POPULATE_WRITE": 23}.items():
        say("System calls", "madvise " + text, call(28, page, 4096, advice) == 0)
    compat_calls()


def compat_calls():
    """System calls of 32-bit programs, by int 0x80."""
    page = libc.mmap(None, 8192, 7, 0x40 | 0x20 | 2, -1, 0)
    # f(number, a, b, c): into eax, ebx, ecx, edx, and esi = edi = 0.
    code = bytes.fromhex("53 89f8 89f3 4989d0 89ca 4489c1 31f6 31ff cd80 5b c3")
    ctypes.memmove(page, code, len(code))
    function = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_long] * 4)(page)
    data = page + 4096
    for name, number, arguments in (
            ("getpid", 20, (0, 0, 0)), ("time", 13, (0, 0, 0)), ("gettimeofday", 78, (data, 0, 0)), ("nanosleep", 162, (data, 0, 0)),
            ("clock_gettime", 265, (1, data, 0)), ("clock_gettime64", 403, (1, data, 0)), ("futex", 240, (data, 1, 1)),
            ("sched_rr_get_interval", 161, (0, data, 0)), ("timerfd_create", 322, (1, 0, 0))):
        ctypes.memset(data, 0, 4096)
        say("System calls", "32-bit " + name, function(number, *arguments) != -errno.ENOSYS)


PROC = """buddyinfo cgroups crypto diskstats interrupts loadavg locks misc pagetypeinfo partitions schedstat softirqs swaps
sysvipc/shm vmallocinfo vmstat zoneinfo slabinfo modules config.gz kcore net/dev net/snmp6 net/netstat net/sockstat6 net/softnet_stat net/arp
net/if_inet6 net/protocols net/igmp net/packet net/ptype self/auxv self/autogroup self/clear_refs self/io self/loginuid self/map_files
self/numa_maps self/pagemap self/personality self/sched self/schedstat self/smaps_rollup self/stack self/syscall self/timers
self/timerslack_ns self/wchan key-users keys latency_stats
sys/kernel/ns_last_pid sys/kernel/yama/ptrace_scope sys/kernel/perf_event_paranoid sys/kernel/unprivileged_bpf_disabled
sys/kernel/hung_task_timeout_secs sys/kernel/sched_rt_runtime_us sys/kernel/keys/maxkeys sys/kernel/ftrace_enabled
sys/vm/nr_hugepages sys/vm/zone_reclaim_mode sys/vm/unprivileged_userfaultfd sys/fs/mqueue/msg_max sys/user/max_user_namespaces
sys/fs/binfmt_misc sys/net/mptcp/enabled sys/net/ipv4/conf/all/rp_filter""".split()
SYS = """devices/system/cpu/cpu0/topology/core_id devices/system/cpu/cpu0/cache/index0/size devices/system/node/node0/meminfo
devices/system/clocksource/clocksource0/current_clocksource kernel/mm/transparent_hugepage/enabled kernel/mm/ksm/run
kernel/mm/hugepages/hugepages-2048kB/nr_hugepages kernel/mm/lru_gen/enabled kernel/btf/vmlinux kernel/tracing kernel/debug kernel/slab
kernel/security/apparmor class/net/lo/mtu class/dmi/id/product_name power/state module""".split()


def files():
    for name in PROC:
        say("Files of /proc and /sys", "/proc/" + name, os.path.lexists("/proc/" + name))
    for name in SYS:
        say("Files of /proc and /sys", "/sys/" + name, os.path.lexists("/sys/" + name))
    fields = {line.split()[0] for line in open("/proc/vmstat")}
    for name in "nr_dirty pgpgin pswpin pgfault pgmajfault oom_kill thp_fault_alloc numa_hit ksm_swpin_copy".split():
        say("Files of /proc and /sys", "/proc/vmstat: " + name, name in fields)


def sockets():
    group = "Sockets"
    inet, stream, datagram, packets, raw = socket.AF_INET, socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_RAW
    for name, *kind in (
            ("SCTP, one to one", inet, stream, 132), ("SCTP, one to many", inet, packets, 132), ("MPTCP", inet, stream, 262),
            ("UDP-Lite", inet, datagram, 136), ("DCCP", inet, 6, 33), ("ICMP, raw", inet, raw, 1), ("packet", 17, raw, 0x300),
            ("AF_ALG", 38, packets), ("AF_XDP", 44, raw), ("SMC", 43, stream), ("TIPC", 30, packets), ("RDS", 21, packets),
            ("KCM", 41, datagram), ("vsock", 40, stream), ("AF_KEY", 15, raw, 2), ("L2TP", inet, datagram, 115), ("CAN", 29, raw, 1),
            ("PPPoX", 24, stream), ("QIPCRTR", 42, datagram)):
        say(group, name, no_error(lambda kind=kind: socket.socket(*kind).close()))
    for name, protocol in (
            ("route", 0), ("sock_diag", 4), ("nflog", 5), ("xfrm", 6), ("audit", 9), ("fib_lookup", 10), ("connector", 11), ("netfilter", 12),
            ("kobject_uevent", 15), ("generic", 16), ("crypto", 21)):
        say(group, "netlink " + name, no_error(lambda protocol=protocol: socket.socket(16, raw, protocol).close()))
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    say(group, "TLS in the kernel (KTLS)", no_error(client.setsockopt, 6, 31, b"tls"))
    for name in b"cubic", b"reno", b"bbr", b"dctcp", b"vegas":
        say(group, "congestion control " + name.decode(), no_error(accepted.setsockopt, 6, 13, name))
    for name, option in (("TCP_FASTOPEN", 23), ("TCP_MD5SIG", 14)):
        value = 1 if name != "TCP_MD5SIG" else struct.pack("=HH124sHHI80s", 2, 0, bytes(4) + b"\x7f\0\0\1" + bytes(116), 0, 1, 0, b"k")
        say(group, name, no_error(listener.setsockopt, 6, option, value))
    say(group, "TCP_REPAIR", no_error(socket.socket().setsockopt, 6, 19, 1))
    say(group, "TCP_ZEROCOPY_RECEIVE", no_error(accepted.getsockopt, 6, 35, 16))
    for name, level, option in (("SO_BUSY_POLL", 1, 46), ("SO_INCOMING_CPU", 1, 49), ("SO_ZEROCOPY", 1, 60), ("SO_TXTIME", 1, 61),
                                ("SO_MARK", 1, 36), ("IP_TRANSPARENT", 0, 19), ("SO_PREFER_BUSY_POLL", 1, 69)):
        value = 1 if name != "SO_TXTIME" else struct.pack("ii", 1, 0)
        say(group, name, no_error(listener.setsockopt, level, option, value))


def ciphers():
    for kind, name in (("hash", "sha256"), ("hash", "hmac(sha1)"), ("hash", "blake2b-512"), ("skcipher", "cbc(aes)"), ("skcipher", "xts(aes)"),
                       ("aead", "gcm(aes)"), ("aead", "rfc7539(chacha20,poly1305)"), ("rng", "stdrng")):
        def bind(kind=kind, name=name):
            with socket.socket(38, socket.SOCK_SEQPACKET) as alg:
                alg.bind((kind, name))
        say("Ciphers (AF_ALG)", f"{kind} {name}", no_error(bind))


def families():
    """Families of generic netlink, and of netfilter's."""
    def attribute(number, data):
        return struct.pack("=HH", 4 + len(data), number) + data + bytes(-len(data) % 4)

    def ask(kind, flags, command, body):
        with socket.socket(16, socket.SOCK_RAW, 16) as generic:
            generic.send(struct.pack("=IHHII", 20 + len(body), kind, flags, 1, 0) + struct.pack("=BBH", command, 1, 0) + body)
            answer = generic.recv(65536)
            # An error, with the number 0 if it is none.
            if struct.unpack_from("=H", answer, 4)[0] == 2 and struct.unpack_from("=i", answer, 16)[0] != 0:
                raise OSError
            return answer

    def family(name):
        return ask(16, 1, 3, attribute(2, name.encode() + b"\0"))

    def ipvs_service():
        # The answer has the name first, and then the number.
        number, = struct.unpack_from("=H", family("IPVS"), 20 + 12 + 4)
        address = attribute(3, b"\xc0\0\2\1" + bytes(12)) + attribute(4, b"\0\x50")
        service = attribute(1, struct.pack("=H", 2)) + attribute(2, struct.pack("=H", 6)) + address + attribute(6, b"rr\0")
        service += attribute(7, bytes(8)) + attribute(8, bytes(4)) + attribute(9, b"\xff" * 4)
        ask(number, 5, 1, attribute(0x8001, service))
    for name in "IPVS", "wireguard", "mptcp_pm", "TASKSTATS", "ethtool", "l2tp", "gtp", "fou", "macsec", "ovs_datapath", "team", "tcp_metrics":
        say("Netlink families", name, no_error(family, name))

    say("Netlink families", "IPVS service", no_error(ipvs_service))

    def ipset(kind):
        with socket.socket(16, socket.SOCK_RAW, 12) as netfilter:
            body = struct.pack("=BBH", 2, 0, 0) + attribute(1, b"\7") + attribute(2, f"s-{kind}\0".encode())
            body += attribute(3, kind.encode() + b"\0") + attribute(4, b"\0") + attribute(5, b"\0" if kind in ("hash:mac", "list:set") else b"\2") + attribute(0x8007, b"")
            netfilter.send(struct.pack("=IHHII", 16 + len(body), 6 << 8 | 2, 0x605, 1, 0) + body)
            answer = netfilter.recv(65536)
            if struct.unpack_from("=i", answer, 16)[0] != 0:
                raise OSError
    for kind in "hash:ip", "hash:net", "hash:ip,port", "hash:mac", "list:set":
        say("ipset", kind, no_error(ipset, kind))


def xdp():
    """Attaches a program that lets all packets pass to an interface."""
    def bpf(command, attributes):
        result = libc.syscall(321, command, attributes, len(attributes))
        if result < 0:
            raise OSError
        return result
    # r0 = XDP_PASS; exit
    code = ctypes.create_string_buffer(bytes.fromhex("b700000002000000 9500000000000000"))
    licence = ctypes.create_string_buffer(b"GPL")
    shell("ip link add x4 type veth peer name x5")
    program = bpf(5, struct.pack("=IIQQ", 6, 2, ctypes.addressof(code), ctypes.addressof(licence)) + bytes(48))
    # BPF_LINK_CREATE of a BPF_XDP.
    os.close(bpf(28, struct.pack("=IIII", program, socket.if_nametoindex("x4"), 37, 0) + bytes(32)))
    os.close(program)


def links():
    kinds = {kind: f"type {kind}" for kind in "dummy ifb bridge bond team wireguard nlmon vcan netkit".split()}
    kinds |= {f"{kind} on an interface": f"link eth0 type {kind}" for kind in "macvlan ipvlan macvtap ipvtap macsec".split()}
    kinds |= {
        "vrf": "type vrf table 10", "xfrm": "type xfrm dev lo if_id 7", "veth": "type veth peer name x1",
        "vxlan": "type vxlan id 1 remote 192.0.2.1 dstport 4789", "geneve": "type geneve id 1 remote 192.0.2.1",
        "gre": "type gre remote 192.0.2.1", "gretap": "type gretap remote 192.0.2.1", "ipip": "type ipip remote 192.0.2.1",
        "sit": "type sit remote 192.0.2.1", "erspan": "type erspan remote 192.0.2.1 seq key 1 erspan_ver 1 erspan 1",
        "ip6tnl": "type ip6tnl remote 2001:db8::1", "ip6gre": "type ip6gre remote 2001:db8::1", "vti": "type vti remote 192.0.2.1 key 1",
        "fou": "type ipip remote 192.0.2.1 encap fou encap-sport auto encap-dport 5555", "vlan": "link eth0 type vlan id 5",
        "QinQ": "link eth0 type vlan proto 802.1ad id 5", "bridge with VLANs": "type bridge vlan_filtering 1",
        "hsr": "type hsr slave1 x2 slave2 x3",
    }
    # What some kinds need below them: interfaces of Ethernet, with IPv6, which Docker turns off.
    shell("sysctl -q net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0")
    shell("ip link add x2 numtxqueues 2 type dummy && ip link set x2 up && ip link add x3 type dummy && ip link set x3 up")
    for name, arguments in kinds.items():
        say("Links", name, shell(f"ip link add x0 {arguments}") and shell("ip link del x0"))
    say("Links", "tun", shell("ip tuntap add x0 mode tun && ip link del x0"))
    say("Links", "tap, many queues", shell("ip tuntap add x0 mode tap multi_queue && ip link del x0"))
    say("Links", "XDP program", no_error(xdp))
    for name, script in {
            "rule fwmark": "rule add fwmark 5 table 100", "blackhole route": "route add blackhole 198.51.100.0/24",
            "multipath route": "route add 192.0.2.0/24 nexthop dev eth0 weight 1 nexthop dev lo weight 1",
            "MPLS route": "route add 203.0.113.0/24 encap mpls 100 dev eth0", "SRv6 route": "-6 route add 2001:db8:9::/64 encap seg6 mode encap segs 2001:db8::2 dev x2",
            "ESP": "xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 1 mode tunnel aead 'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1011121314 128",
            "AH": "xfrm state add src 192.0.2.1 dst 192.0.2.2 proto ah spi 2 mode transport auth 'hmac(sha256)' 0x0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20",
            "IPComp": "xfrm state add src 192.0.2.1 dst 192.0.2.2 proto comp spi 0x30 mode transport comp deflate"}.items():
        say("Routes and IPsec", name, shell("ip " + script))


def traffic_control():
    group = "Traffic control"
    disciplines = {name: name for name in "prio sfq fq fq_codel codel pie drr qfq multiq hhf".split()}
    disciplines |= {"choke": "choke limit 1000 bandwidth 10mbit", "netem": "netem delay 1ms loss 1%", "tbf": "tbf rate 1mbit burst 10k latency 50ms", "cake": "cake bandwidth 1mbit",
                    "red": "red limit 400000 min 30000 max 90000 avpkt 1000 burst 55 bandwidth 1mbit", "ets": "ets bands 3"}
    for name, arguments in disciplines.items():
        say(group, "qdisc " + name, shell(f"tc qdisc add dev x2 root {arguments} && tc qdisc del dev x2 root"))
    for name in "htb", "hfsc":
        say(group, "qdisc " + name, shell(f"tc qdisc add dev lo root handle 1: {name} default 1 && tc qdisc del dev lo root"))
    say(group, "qdisc clsact", shell("tc qdisc add dev lo clsact"))
    match = "u32 match ip dst 192.0.2.1"
    for number, (name, arguments) in enumerate({
            "u32": match + "/32", "basic": "basic match 'meta(priority eq 0)' action pass", "flower": "flower dst_ip 192.0.2.1", "flow": "flow hash keys src divisor 1024 baseclass 1:1", "drop": match + " action drop",
            "police": match + " action police rate 1mbit burst 10k drop", "mirred": match + " action mirred egress redirect dev eth0",
            "pedit": match + " action pedit munge ip ttl set 5", "skbedit": match + " action skbedit mark 1", "vlan": match + " action vlan push id 5",
            "nat": match + " action nat ingress 192.0.2.1 192.0.2.2", "csum": match + " action csum ip4h", "matchall": "matchall action pass",
            "ct": match + " action ct commit"}.items(), 1):
        say(group, "filter " + name, shell(f"tc filter add dev lo ingress protocol ip prio {number} {arguments}"))


IPTABLES = {
    "filter INPUT": ["-j REJECT", "-p tcp -j REJECT --reject-with tcp-reset", "-j LOG --log-prefix x: --log-level 4", "-j NFLOG --nflog-group 2",
                     "-j NFQUEUE --queue-num 1 --queue-bypass"],
    "mangle POSTROUTING": ["-j MARK --set-mark 1", "-j CONNMARK --save-mark", "-j DSCP --set-dscp 10", "-j TTL --ttl-set 64", "-j CLASSIFY --set-class 1:1",
                           "-p tcp --syn -j TCPMSS --clamp-mss-to-pmtu", "-p udp -j CHECKSUM --checksum-fill", "-j TEE --gateway 192.0.2.1"],
    "mangle PREROUTING": ["-p tcp -j TPROXY --on-port 9 --tproxy-mark 1", "-p tcp -m socket --transparent -j MARK --set-mark 1",
                          "-m rpfilter --invert -j DROP"],
    "raw PREROUTING": ["-j CT --notrack", "-j CT --zone 5", "-p tcp -j CT --helper ftp", "-j TRACE", "-p tcp --syn -j CT --notrack"],
    "nat POSTROUTING": ["-j MASQUERADE --random-fully", "-j SNAT --to-source 192.0.2.1", "-j NETMAP --to 192.0.2.0/24"],
    "nat PREROUTING": ["-p tcp -j DNAT --to-destination 192.0.2.1:80", "-p tcp -j REDIRECT --to-ports 15001"],
    "filter OUTPUT": ["-m owner --uid-owner 0 -j ACCEPT", "-m cgroup --path / -j ACCEPT"],
    "filter FORWARD": ["-p tcp -m conntrack --ctstate INVALID,UNTRACKED -j SYNPROXY --sack-perm --timestamp --wscale 7 --mss 1460"],
}
MATCHES = [
    "limit --limit 5/min", "hashlimit --hashlimit-upto 5/sec --hashlimit-mode srcip --hashlimit-name h", "recent --name r --set", "string --algo bm --string x",
    "iprange --src-range 192.0.2.1-192.0.2.9", "mac --mac-source 02:00:00:00:00:01", "length --length 0:100", "time --timestart 10:00 --timestop 11:00",
    "pkttype --pkt-type multicast", "ttl --ttl-eq 1", "mark --mark 1", "connmark --mark 1", "conntrack --ctstate RELATED,ESTABLISHED", "state --state NEW",
    "addrtype --dst-type LOCAL", "comment --comment x", "statistic --mode random --probability 0.5", "dscp --dscp 10",
    "connbytes --connbytes 1:2 --connbytes-dir both --connbytes-mode bytes", "helper --helper ftp", "quota --quota 1000", "u32 --u32 0&0=0", "cpu --cpu 0",
    "physdev --physdev-in x", "policy --dir in --pol none", "realm --realm 1", "set --match-set s-hash:ip src", "ipvs --ipvs", "bpf --bytecode '1,6 0 0 1'",
]


def netfilter():
    for place, rules in IPTABLES.items():
        table, chain = place.split()
        for rule in rules:
            say("iptables", f"{place} {rule}", shell(f"iptables-nft -w -t {table} -A {chain} {rule}"))
    for match in MATCHES:
        say("iptables", "-m " + match, shell(f"iptables-nft -w -A INPUT -m {match} -j ACCEPT"))
    for match in "multiport --dports 80,443", "tcpmss --mss 1:500", "connlimit --connlimit-above 9", "ecn --ecn-tcp-cwr":
        say("iptables", "-p tcp -m " + match, shell(f"iptables-nft -w -A INPUT -p tcp -m {match} -j ACCEPT"))
    say("iptables", "ip6tables -j REJECT", shell("ip6tables-nft -w -A INPUT -j REJECT"))
    say("iptables", "ip6tables -t nat -j MASQUERADE", shell("ip6tables-nft -w -t nat -A POSTROUTING -j MASQUERADE"))
    for name in "iptables-legacy -t nat", "ip6tables-legacy", "ebtables-nft", "arptables-nft":
        say("iptables", f"{name} -L", shell(f"{name} -L"))
    nft()


RULES = {
    "c": ["counter drop", "log prefix \"x\" level warn", "log group 2", "limit rate 5/second burst 9 packets", "quota over 1 mbytes drop",
          "ct state established,related accept", "ct mark set 1", "ct count over 9 drop", "queue num 1 bypass", "socket transparent 1 accept",
          "fib daddr type local accept", "reject", "reject with tcp reset", "tcp flags syn tcp option maxseg size set rt mtu",
          "numgen random mod 2 0 accept", "jhash ip saddr mod 2 0 accept", "symhash mod 2 vmap { 0 : accept }", "tcp flags syn synproxy mss 1460 wscale 7",
          "osf name \"Linux\" accept", "ip dscp set cs1", "meta priority set 1:1", "meta time > \"2020-01-01\" accept",
          "rt ip nexthop 192.0.2.1 accept", "exthdr hbh exists drop", "ipsec in reqid 1 accept"],
    "o": ["meta skuid 0 accept"], "pre": ["meta l4proto tcp tproxy ip to :9 accept", "meta nftrace set 1"], "early": ["notrack", "ct zone set 5"],
    "postnat": ["masquerade random,persistent", "ip saddr 192.0.2.1 snat ip to 192.0.2.2"],
    "prenat": ["tcp dport 80 redirect to :8080", "dnat ip to numgen random mod 2 map { 0 : 192.0.2.1, 1 : 192.0.2.2 }"],
}
OBJECTS = {
    "set of intervals": "add set inet t s { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 }; }",
    "set with time": "add set inet t st { type ipv4_addr; flags timeout, dynamic; timeout 1m; size 99; }",
    "concatenated set": "add set inet t sc { type ipv4_addr . inet_service; flags interval; elements = { 192.0.2.0/24 . 80-90 }; }",
    "map of verdicts": "add map inet t m { type inet_service : verdict; elements = { 22 : accept }; }",
    "helper": "add ct helper inet t h { type \"ftp\" protocol tcp; }", "ct timeout": "add ct timeout inet t ti { protocol tcp; policy = { established: 60 }; }",
    "flowtable": "add flowtable inet t f { hook ingress priority 0; devices = { eth0 }; }", "quota": "add quota inet t q { over 1 mbytes; }",
    "table bridge": "add table bridge b; add chain bridge b c { type filter hook forward priority 0; }",
    "table arp": "add table arp a; add chain arp a c { type filter hook input priority 0; }",
    "netdev ingress": "add table netdev n; add chain netdev n i { type filter hook ingress device eth0 priority 0; }",
    "netdev fwd": "add rule netdev n i fwd to lo", "netdev dup": "add rule netdev n i dup to lo",
    "netdev egress": "add chain netdev n e { type filter hook egress device eth0 priority 0; }",
}


def nft():
    def run(commands):
        return subprocess.run(["nft", commands], env=TOOLS, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              check=False).returncode == 0
    chains = {"c": "filter hook input priority 0", "o": "filter hook output priority 0", "pre": "filter hook prerouting priority -150",
              "early": "filter hook prerouting priority -300", "postnat": "nat hook postrouting priority 100",
              "prenat": "nat hook prerouting priority -100", "reroute": "route hook output priority -150"}
    commands = "add table inet t; " + "".join(f"add chain inet t {name} {{ type {kind}; }}; " for name, kind in chains.items())
    say("nft", "chains of every kind", run(commands))
    for chain, rules in RULES.items():
        for rule in rules:
            say("nft", rule, run(f"add rule inet t {chain} {rule}"))
    for name, commands in OBJECTS.items():
        say("nft", name, run(commands))


def file_systems():
    pathlib.Path("/tmp/m").mkdir()
    for name in "overlay", "ext4", "vfat", "exfat", "iso9660", "squashfs", "nfs4", "fuse", "xfs", "btrfs", "cifs", "udf", "f2fs":
        # What the kernel does not know is ENODEV.
        known = libc.mount(b"none", b"/tmp/m", name.encode(), 0, None) == 0 or ctypes.get_errno() != errno.ENODEV
        say("File systems", name, known)
        libc.umount2(b"/tmp/m", 2)
    loop = "truncate -s 16M /tmp/i && mkfs.ext4 -q -F /tmp/i && mount -o loop /tmp/i /tmp/m && touch /tmp/m/x && umount /tmp/m"
    for number in range(8):
        # Docker gives a container the nodes that the host had when it started.
        if not os.path.exists(f"/dev/loop{number}"):
            no_error(os.mknod, f"/dev/loop{number}", 0o60600, os.makedev(7, number))
    say("File systems", "ext4 on a loop device", shell(loop))
    # 2,048 sectors: one of the boot record, eight of the table, one of the root directory, and the files.
    fat = bytearray(1 << 20)
    struct.pack_into("=3s8sHBHBHHBHHHII", fat, 0, b"\xeb\x3c\x90", b"probe", 512, 1, 1, 1, 16, 2048, 0xf8, 8, 32, 2, 0, 0)
    fat[510:515] = b"\x55\xaa\xf8\xff\xff"
    with open("/tmp/fat", "wb") as image:
        image.write(fat)
    say("File systems", "FAT on a loop device", shell("mount -o loop -t vfat /tmp/fat /tmp/m && touch /tmp/m/x && umount /tmp/m"))
    for name, node in {"/dev/net/tun": (10, 200), "/dev/fuse": (10, 229), "/dev/loop-control": (10, 237), "/dev/ppp": (108, 0), "/dev/cuse": (10, 203),
                       "/dev/kvm": (10, 232), "/dev/vhost-net": (10, 238), "/dev/nbd0": (43, 0)}.items():
        def opened(node=node, kind=0o60600 if name.startswith("/dev/nbd") else 0o20600):
            os.mknod("/tmp/node", kind, os.makedev(*node))
            try:
                os.close(os.open("/tmp/node", os.O_RDWR | os.O_NONBLOCK))
            finally:
                os.unlink("/tmp/node")
        say("Devices", name, no_error(opened))


subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/tmp"], check=True)
for part in system_calls, files, sockets, ciphers, links, families, traffic_control, netfilter, file_systems:
    part()
