#!/bin/sh
# What cloud-init does with a seed, as far as tests look for it.
set -e
mkdir -p /run/seed
for disk in /sys/block/vd*; do
	if [ "$(cat "$disk/serial")" = seed ]; then
		mount -t vfat -o ro "/dev/${disk##*/}" /run/seed
	fi
done
hostname "$(sed -n 's/^local-hostname: //p' /run/seed/meta-data)"
sed -n 's/^public-keys: /keys: /p' /run/seed/meta-data >/dev/ttyS0
case $(head -c 2 /run/seed/user-data) in
'#!') sh /run/seed/user-data ;;
esac
umount /run/seed
