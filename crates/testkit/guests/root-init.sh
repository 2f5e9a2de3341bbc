#!/bin/sh
# First program of the RAM disk of a guest that lives on a disk.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do
	insmod "$module"
done
until [ -b /dev/vda ]; do
	sleep 0.1
done
mount -t ext4 /dev/vda /root
umount /proc
mount --move /dev /root/dev
exec switch_root /root /sbin/init
