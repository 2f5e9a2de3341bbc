#!/bin/busybox sh
# First program of the small system that boots by itself.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -o remount,rw /
starts=$(($(cat /starts 2>/dev/null) + 1))
echo $starts >/starts
sync
sh /etc/seed.sh
echo "start $starts of $(hostname)"
cd /root
setsid -c sh -i
sync
poweroff -f
