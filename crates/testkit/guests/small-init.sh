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
mkdir -p /etc/acpi/PWRF
printf '#!/bin/sh\nsync\npoweroff -f\n' >/etc/acpi/PWRF/00000080
chmod +x /etc/acpi/PWRF/00000080
acpid -l /dev/null -p /run/acpid.pid
echo "start $starts of $(hostname)"
cd /root
setsid -c sh -i
sync
poweroff -f
