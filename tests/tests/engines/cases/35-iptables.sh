#!/bin/sh
# Matches and targets of iptables that firewalls and VPN images use
# Thread: kata-containers/kata-containers#8237, linuxserver/docker-wireguard#296, jamesmcm/vopono#297, passteque/gluetun#1723, istio/istio#57678
# Right:  every rule is taken, as with runc on a Debian kernel
. "$(dirname "$0")/common.sh"
docker image inspect "$P/dev" >/dev/null 2>&1 || { echo "skipped: no image $P/dev"; exit 0; }
run --cap-add NET_ADMIN "$P/dev" sh -c '
a() { where=$1; shift; for r; do iptables -w -t ${where%/*} -A ${where#*/} $r >/dev/null 2>&1 && echo "$where $r: yes" || echo "$where $r: no"; done; }
a filter/INPUT "-j REJECT" "-p tcp -j REJECT --reject-with tcp-reset" "-j LOG --log-prefix x: --log-level 4" "-j NFLOG --nflog-group 2" "-j NFQUEUE --queue-num 1 --queue-bypass"
a mangle/POSTROUTING "-j MARK --set-mark 1" "-j CONNMARK --save-mark" "-j CONNMARK --restore-mark" "-j DSCP --set-dscp 10" "-j TOS --set-tos 0x10" "-j TTL --ttl-set 64" "-j CLASSIFY --set-class 1:1" "-p tcp --syn -j TCPMSS --clamp-mss-to-pmtu" "-p udp -j CHECKSUM --checksum-fill" "-j TEE --gateway 192.0.2.1"
a mangle/PREROUTING "-p tcp -j TPROXY --on-port 9 --tproxy-mark 1" "-p tcp -m socket --transparent -j MARK --set-mark 1" "-m rpfilter --invert -j DROP"
a raw/PREROUTING "-j NOTRACK" "-j CT --notrack" "-j CT --zone 5" "-p tcp -j CT --helper ftp" "-j TRACE"
a nat/POSTROUTING "-j MASQUERADE" "-j MASQUERADE --random-fully" "-j SNAT --to-source 192.0.2.1" "-j NETMAP --to 192.0.2.0/24"
a nat/PREROUTING "-p tcp -j DNAT --to-destination 192.0.2.1:80" "-p tcp -j REDIRECT --to-ports 15001"
a filter/OUTPUT "-m owner --uid-owner 0 -j ACCEPT" "-m cgroup --path / -j ACCEPT"
for m in "limit --limit 5/min --limit-burst 7" "hashlimit --hashlimit-upto 5/sec --hashlimit-mode srcip --hashlimit-name h" "recent --name r --set" "string --algo bm --string x" "iprange --src-range 192.0.2.1-192.0.2.9" "mac --mac-source 02:00:00:00:00:01" \
    "length --length 0:100" "time --timestart 10:00 --timestop 11:00" "pkttype --pkt-type multicast" "ttl --ttl-eq 1" "mark --mark 1" "connmark --mark 1" "conntrack --ctstate RELATED,ESTABLISHED" "state --state NEW" "addrtype --dst-type LOCAL" "comment --comment x" \
    "statistic --mode random --probability 0.5" "dscp --dscp 10" "tos --tos 0x10" "connbytes --connbytes 1:2 --connbytes-dir both --connbytes-mode bytes" "helper --helper ftp" "quota --quota 1000" "u32 --u32 0&0=0" "cpu --cpu 0" "physdev --physdev-in x" "policy --dir in --pol none" "realm --realm 1"; do
    a filter/INPUT "-m $m -j ACCEPT"; done
for m in "multiport --dports 80,443" "tcpmss --mss 1:500" "connlimit --connlimit-above 9" "ecn --ecn-tcp-cwr"; do a filter/INPUT "-p tcp -m $m -j ACCEPT"; done
ip6tables -w -A INPUT -j REJECT 2>/dev/null && echo "ip6 REJECT: yes" || echo "ip6 REJECT: no"
ip6tables -w -t nat -A POSTROUTING -j MASQUERADE 2>/dev/null && echo "ip6 MASQUERADE: yes" || echo "ip6 MASQUERADE: no"
ip6tables -w -A INPUT -p icmpv6 -m hl --hl-eq 255 -j ACCEPT 2>/dev/null && echo "ip6 hl: yes" || echo "ip6 hl: no"
for c in iptables-legacy ip6tables-legacy ebtables arptables; do $c -L >/dev/null 2>&1 && echo "$c: yes" || echo "$c: no"; done
iptables-save 2>/dev/null >/tmp/s; grep -q COMMIT /tmp/s && echo "saved"; iptables -F; iptables-restore </tmp/s 2>/dev/null && echo "restored" || echo "not restored"'
