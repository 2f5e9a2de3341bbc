#!/bin/sh
# TCP throughput of slirp4netns and pasta, where they are installed, with iperf3 between a
# network namespace behind them and the host's loopback. Prints Gbit/s for both directions
# and Gbit for each CPU second of the program that carries the packets.
set -eu
seconds=${1:-4}
port=15201

have() { command -v "$1" >/dev/null 2>&1 || { echo "$1 is not installed, so not measured"; return 1; }; }
have iperf3 || exit 0
have unshare || exit 0

iperf3 -s -B 127.0.0.1 -p $port >/dev/null 2>&1 &
server=$!
held=
program=
finish() {
    for pid in $server $held $program; do kill "$pid" 2>/dev/null || true; done
}
trap finish EXIT
sleep 0.5

ticks() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }

# Runs iperf3 inside: name, process of the namespace, process of the program, address.
measure() {
    for way in out in; do
        reverse=; [ $way = in ] && reverse=-R
        before=$(ticks "$3")
        bits=$(nsenter -t "$2" -U -n --preserve-credentials \
            iperf3 -c "$4" -p $port -t "$seconds" -J $reverse |
            awk '/"sum_received"/ { found = 1 } found && /bits_per_second/ { sub(/.*:/, ""); sub(/,.*/, ""); print; exit }')
        after=$(ticks "$3")
        awk -v name="$1" -v way=$way -v bits="$bits" -v ticks=$((after - before)) \
            -v hertz="$(getconf CLK_TCK)" -v seconds="$seconds" 'BEGIN {
                cpu = ticks / hertz
                printf "%12s %3s: %6.1f Gbit/s, %6.1f Gbit per CPU second\n",
                    name, way, bits / 1e9, (cpu > 0) ? bits * seconds / 1e9 / cpu : 0 }'
    done
}

hold() {
    unshare -rn sleep 600 &
    held=$!
    # Until it has its own network.
    while [ "$(readlink "/proc/$held/ns/net")" = "$(readlink /proc/self/ns/net)" ]; do
        sleep 0.1
    done
    sleep 0.5
}

if have slirp4netns; then
    hold
    slirp4netns --configure --mtu=65520 "$held" tap0 >/dev/null 2>&1 &
    program=$!
    sleep 1.5
    measure slirp4netns "$held" "$program" 10.0.2.2
    kill "$program" "$held"
    wait "$program" "$held" 2>/dev/null || true
fi
if have pasta; then
    # As root it would become nobody, who may not enter the namespace.
    runas=
    [ "$(id -u)" != 0 ] || runas='--runas 0'
    hold
    pasta $runas --foreground --config-net --quiet -t none -u none --map-host-loopback 10.9.8.7 \
        "$held" >/dev/null 2>&1 &
    program=$!
    sleep 1.5
    if kill -0 "$program" 2>/dev/null; then
        measure pasta "$held" "$program" 10.9.8.7
    else
        # Older ones know no such option: the gateway is the host.
        pasta $runas --foreground --config-net --quiet -t none -u none "$held" >/dev/null 2>&1 &
        program=$!
        sleep 1.5
        gateway=$(nsenter -t "$held" -U -n --preserve-credentials ip route |
            awk '/^default/ { print $3; exit }')
        measure pasta "$held" "$program" "$gateway"
    fi
fi
