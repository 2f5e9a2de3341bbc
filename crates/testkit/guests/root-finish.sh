#!/bin/sh
# Makes a system that boots of an unpacked Debian, and an image of it:
# root-finish.sh DIRECTORY IMAGE SIZE
set -e
root=$1 image=$2 size=$3

echo guise >"$root/etc/hostname"
echo '/dev/vda / ext4 errors=remount-ro 0 1' >"$root/etc/fstab"
chroot "$root" passwd --quiet --delete root
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
	fstrim.timer getty@tty1.service; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*

# A package of 3000 files, which is installed in the guest.
package=$root/tmp/guise-files
mkdir -p "$package/DEBIAN" "$package/opt/files"
cat >"$package/DEBIAN/control" <<CONTROL
Package: guise-files
Version: 1
Architecture: all
Maintainer: Guise <guise@example.org>
Description: Many files
CONTROL
number=0
while [ $number -lt 3000 ]; do
	directory=$package/opt/files/$((number / 100))
	[ -d "$directory" ] || mkdir "$directory"
	seq $number $((number + number % 700)) >"$directory/$number"
	number=$((number + 1))
done
(cd "$package" && find opt -type f -exec md5sum {} + >DEBIAN/md5sums)
dpkg-deb --root-owner-group -Znone --build "$package" "$root/root/guise-files.deb" >/dev/null
rm -r "$package"

# Without what is mounted in it at the moment.
plain=$root.plain
cp --archive --one-file-system "$root" "$plain"
mkfs.ext4 -q -F -d "$plain" "$image" "$size"
rm -rf "$plain"
