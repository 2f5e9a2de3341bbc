#!/bin/busybox sh
# First program of the small system that boots by itself.
/bin/busybox --install -s /bin
export PATH=/bin
# Who made an image the root has these already.
[ -d /proc/1 ] || mount -t proc proc /proc
[ -d /sys/block ] || mount -t sysfs sys /sys
mkdir -p /dev/pts
mount -t devpts -o mode=620,ptmxmode=666 pts /dev/pts
mount -o remount,rw /
# Who asks for more than there is gets it, and is ended when it uses that.
echo 1 >/proc/sys/vm/overcommit_memory
starts=$(($(cat /starts 2>/dev/null) + 1))
echo $starts >/starts
sync
sh /etc/seed.sh
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$(hostname)" >/etc/hosts
for interface in /sys/class/net/*; do
	interface=${interface##*/}
	ip link set "$interface" up
	[ "$interface" = lo ] || udhcpc -q -n -i "$interface" -s /etc/udhcpc.sh >/dev/null 2>&1
done
mkdir -p /etc/acpi/PWRF
printf '#!/bin/sh\nsync\npoweroff -f\n' >/etc/acpi/PWRF/00000080
chmod +x /etc/acpi/PWRF/00000080
acpid -l /dev/null -p /run/acpid.pid
echo "start $starts of $(hostname)"
cd /root
setsid -c sh -i
sync
poweroff -f
