#!/bin/sh
# Statements and expressions of nftables
# Thread: microsoft/WSL#8071, k3s-io/k3s#1812, home-assistant/operating-system#4887
# Right:  every rule is taken, as with runc on a Debian kernel
set -u
R=${1:?usage: $0 RUNTIME}
P=${IMAGES:-pouch-test}
N=pbug$(basename "$0" | cut -c1-2)-$$
T=${SECONDS_MAX:-600}
clean() { :; }
done_() { clean; docker rm -f -v "$N" "$N-2" >/dev/null 2>&1; docker volume rm -f "$N" "$N-2" >/dev/null 2>&1; docker network rm "$N" >/dev/null 2>&1; }
trap done_ EXIT
trap 'exit 130' INT TERM
# Runs a container to its end; says so if it takes too long.
run() { timeout -k 10 "$T" docker run --rm --runtime="$R" --name "$N" "$@" </dev/null; s=$?; case $s in 124|137) echo "timed out";; esac; return $s; }
docker image inspect "$P/dev" >/dev/null 2>&1 || { echo "skipped: no image $P/dev"; exit 0; }
run --cap-add NET_ADMIN "$P/dev" sh -c '
nft "add table inet t; add chain inet t c { type filter hook input priority 0; }; add chain inet t o { type filter hook output priority 0; }; add chain inet t pre { type filter hook prerouting priority -150; }; add chain inet t early { type filter hook prerouting priority -300; }; add chain inet t postnat { type nat hook postrouting priority 100; }; add chain inet t prenat { type nat hook prerouting priority -100; }; add chain inet t reroute { type route hook output priority -150; }" 2>/dev/null && echo "chains: yes" || echo "chains: no"
r() { c=$1; shift; nft "add rule inet t $c $*" 2>/dev/null && echo "$*: yes" || echo "$*: no"; }
for x in "counter drop" "log prefix \"x\" level warn" "log group 2" "limit rate 5/second burst 9 packets" "quota over 1 mbytes drop" "ct state established,related accept" "ct mark set 1" "ct mark 1 accept" "meta mark set ct mark" "ct count over 9 drop" "ct label 1 accept" "queue num 1 bypass" "socket transparent 1 accept" \
    "socket cgroupv2 level 1 \"x\" accept" "fib daddr type local accept" "reject" "reject with tcp reset" "tcp flags syn tcp option maxseg size set rt mtu" "meta skuid 0 accept" "numgen random mod 2 0 accept" "jhash ip saddr mod 2 0 accept" "symhash mod 2 vmap { 0 : accept }" "tcp flags syn synproxy mss 1460 wscale 7" "osf name \"Linux\" accept" \
    "ip dscp set cs1" "meta priority set 1:1" "dup to 192.0.2.1" "ip saddr 192.0.2.0/24 icmp type echo-request accept" "meta time > \"2020-01-01\" accept" "rt ip nexthop 192.0.2.1 accept" "exthdr hbh exists drop" "ipsec in reqid 1 accept" "meta nftrace set 1"; do
    case $x in *nftrace*) r pre "$x";; *skuid*) r o "$x";; *) r c "$x";; esac; done
r pre "meta l4proto tcp tproxy ip to :9 accept"; r early "notrack"; r early "ct zone set 5"; r postnat "masquerade random,persistent"; r postnat "ip saddr 192.0.2.1 snat ip to 192.0.2.2"; r prenat "tcp dport 80 redirect to :8080"; r prenat "tcp dport 81 dnat ip to 192.0.2.1:80"; r prenat "dnat ip to numgen random mod 2 map { 0 : 192.0.2.1, 1 : 192.0.2.2 }"; r reroute "meta mark set 5"
o() { n=$1; shift; nft "$*" 2>/dev/null && echo "$n: yes" || echo "$n: no"; }
o "set" "add set inet t s { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 }; }"; o "set with time" "add set inet t st { type ipv4_addr; flags timeout, dynamic; timeout 1m; size 99; }"; r c "add @st { ip saddr limit rate 5/second }"; o "concatenated set" "add set inet t sc { type ipv4_addr . inet_service; flags interval; elements = { 192.0.2.0/24 . 80-90 }; }"
o "map" "add map inet t m { type inet_service : verdict; elements = { 22 : accept }; }"; o "helper" "add ct helper inet t h { type \"ftp\" protocol tcp; }"; o "ct timeout" "add ct timeout inet t ti { protocol tcp; policy = { established: 60 }; }"; o "flowtable" "add flowtable inet t f { hook ingress priority 0; devices = { eth0 }; }"; o "quota object" "add quota inet t q { over 1 mbytes; }"; o "counter object" "add counter inet t co"; o "limit object" "add limit inet t li { rate 5/second; }"
o "bridge" "add table bridge b; add chain bridge b c { type filter hook forward priority 0; }"; o "arp" "add table arp a; add chain arp a c { type filter hook input priority 0; }"; o "netdev ingress" "add table netdev n; add chain netdev n i { type filter hook ingress device eth0 priority 0; }"; o "netdev fwd" "add rule netdev n i fwd to lo"; o "netdev dup" "add rule netdev n i dup to lo"; o "netdev egress" "add chain netdev n e { type filter hook egress device eth0 priority 0; }"
nft list ruleset 2>/dev/null | grep -q "table inet t" && echo listed'
