#!/bin/sh
# What udhcpc does with a lease.
[ "$1" = bound ] || exit 0
ifconfig "$interface" "$ip" netmask "$subnet"
route add default gw "$router"
for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
echo "lease: $ip by $router"
