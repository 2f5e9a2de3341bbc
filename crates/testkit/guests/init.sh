#!/bin/sh
# First program of test guests. The kernel's command line decides what it does:
# `... -- COMMAND` runs the command and powers off, nothing after `--` is a shell.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root TERM=linux
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
ln -sf /proc/self/fd /dev/fd
mount -t tmpfs tmp /tmp
for module in /modules/*.ko; do
	[ -e "$module" ] && insmod "$module"
done
echo "guise: init reached at $(cut -d' ' -f1 /proc/uptime) s"
cd /root
if [ $# -gt 0 ]; then
	if [ $# -eq 1 ]; then sh -c "$1"; else "$@"; fi
	echo "guise: command ended with $?"
else
	export PS1='guest# '
	setsid cttyhack sh
fi
poweroff -f
