#!/bin/sh
# How long a Debian kernel takes to reach /init on one vCPU, three times: wall-clock
# seconds and seconds of the host's CPU, from Guise's own statistics.
set -eu
guise=$1
assets=${GUISE_ASSETS:-assets}
statistics=$(mktemp)
trap 'rm -f "$statistics"' EXIT
for kernel in debian-12-cloud debian-12 debian-13-cloud; do
	for _ in 1 2 3; do
		set -- "$assets/kernels/$kernel"/boot/vmlinuz-*
		"$guise" boot --kernel "$1" --initrd "$assets/initramfs/shell.cpio" --cpus 1 \
			--append "console=ttyS0 quiet -- true" --timeout 600 --stats "$statistics" >/dev/null
		sed -n "s/^ *\"\(wall_seconds\|cpu_seconds\)\": \([0-9.]*\),*/$kernel	\1	\2/p" "$statistics"
	done
done
