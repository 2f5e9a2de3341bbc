#!/bin/sh
# The main job, shown: a Debian kernel boots to a shell in this terminal, or, where
# there is no terminal, boots, runs one command and powers off.
set -eu
guise=$1
assets=${GUISE_ASSETS:-assets}
set -- "$assets"/kernels/debian-12-cloud/boot/vmlinuz-*

if [ -t 0 ] && [ -t 1 ]; then
	echo "A Debian kernel boots on Guise's own engine. Leave with 'exit' or Ctrl-A X."
	exec "$guise" boot --kernel "$1" --initrd "$assets/initramfs/shell.cpio" \
		--append "console=ttyS0 quiet"
fi
exec "$guise" boot --kernel "$1" --initrd "$assets/initramfs/shell.cpio" --timeout 300 \
	--append "console=ttyS0 -- \"uname -a; cat /proc/cpuinfo | head -8; free; echo A guest ran here.\""
