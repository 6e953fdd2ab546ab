#!/bin/sh
# Delay, loss and shaping made inside a container
# Thread: chaos-mesh/chaos-mesh#1389, bitnami/minideb#145, moby/moby#33162
# Right:  tc knows netem, tbf, htb, prio, sfq, ingress ... and the filters and actions, as with runc on a Debian kernel
. "$(dirname "$0")/common.sh"
run --cap-add NET_ADMIN "$P/debian" sh -c '
q() { k=$1; shift; if tc qdisc add dev lo "$@" >/dev/null 2>&1; then echo "qdisc $k: yes"; else echo "qdisc $k: no"; fi; tc qdisc del dev lo root 2>/dev/null; }
q netem root netem delay 1ms loss 1%; q tbf root tbf rate 1mbit burst 10k latency 50ms; q htb root handle 1: htb default 1
for k in prio sfq fq fq_codel codel cake pie red hfsc drr qfq ets multiq choke hhf; do case $k in
    red) q red root red limit 400000 min 30000 max 90000 avpkt 1000 burst 55 bandwidth 1mbit;; hfsc) q hfsc root handle 1: hfsc default 1;; ets) q ets root ets bands 3;; choke) q choke root choke limit 1000 bandwidth 10mbit;; cake) q cake root cake bandwidth 1mbit;; *) q $k root $k;; esac; done
tc qdisc add dev lo clsact 2>/dev/null && echo "qdisc clsact: yes" || { echo "qdisc clsact: no"; tc qdisc add dev lo ingress; }
f() { k=$1; shift; if tc filter add dev lo ingress "$@" >/dev/null 2>&1; then echo "filter $k: yes"; else echo "filter $k: no"; fi; }
f u32 protocol ip prio 1 u32 match ip dst 192.0.2.0/24
f basic protocol ip prio 2 basic action pass; f flower protocol ip prio 3 flower dst_ip 192.0.2.1; f matchall prio 4 matchall action pass; f flow protocol ip prio 5 flow hash keys src divisor 1024 baseclass 1:1
f drop protocol ip prio 11 u32 match ip dst 192.0.2.1 action drop
f police protocol ip prio 12 u32 match ip dst 192.0.2.1 action police rate 1mbit burst 10k drop
f mirred protocol ip prio 13 u32 match ip dst 192.0.2.1 action mirred egress redirect dev eth0
f pedit protocol ip prio 14 u32 match ip dst 192.0.2.1 action pedit munge ip ttl set 5
f skbedit protocol ip prio 15 u32 match ip dst 192.0.2.1 action skbedit mark 1
f vlan protocol ip prio 16 u32 match ip dst 192.0.2.1 action vlan push id 5
f nat protocol ip prio 17 u32 match ip dst 192.0.2.1 action nat ingress 192.0.2.1 192.0.2.2
f csum protocol ip prio 18 u32 match ip dst 192.0.2.1 action csum ip4h
tc qdisc add dev lo root handle 1: htb default 1 2>/dev/null; tc filter add dev lo parent 1: protocol ip prio 1 handle 5 fw classid 1:1 2>/dev/null && echo "filter fw: yes" || echo "filter fw: no"
tc qdisc del dev lo root 2>/dev/null
tc qdisc add dev eth0 root netem delay 300ms 2>/dev/null
g=$(ip -4 route | sed -n "s/default via \([^ ]*\).*/\1/p"); t=$(ping -c 1 -W 30 "$g" | sed -n "s/.*time=\([0-9]*\).*/\1/p")
[ "${t:-0}" -ge 300 ] && echo "the delay is felt" || echo "no delay"'
