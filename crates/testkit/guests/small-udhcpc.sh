#!/bin/sh
# What the small system does with a lease: the first network leads outwards, the last one knows
# names.
[ "$1" = bound ] || exit 0
ifconfig "$interface" "$ip" netmask "$subnet"
[ -z "$router" ] || route add default gw "$router" 2>/dev/null
for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
