#!/bin/sh
# A guest's hard day: soak.sh SECONDS. Two jobs that look like compiling (many short
# processes that read, transform and write files), one that fills memory until little is
# left, one that tortures the kernel. What every job makes is known beforehand; a
# difference is printed as LOST. Each round ends with a line of its own.
limit=$1
cd /tmp || exit 1
# What fills memory has a file system of its own: the others always find room.
mount -t tmpfs -o size=100% fill /mnt || exit 1

lost() { echo "LOST: $*" >&2; }

# "Sources", each with its own content.
sources() {
	mkdir -p src
	n=0
	while [ $n -lt 24 ]; do
		awk -v seed=$n 'BEGIN { for (i = 0; i < 400; i++) { seed = (seed * 1103515245 + 12345) % 2147483648
			printf "int f%d_%d(int x) { return x * %d + %d; }\n", seed % 97, i, seed % 1000, i } }' >src/$n.c
		n=$((n + 1))
	done
}

# Preprocess, sort, "assemble", compress, link: the result is always the same.
build() {
	rm -rf out$1
	mkdir out$1
	for file in src/*.c; do
		name=${file#src/}
		sed 's/return/RETURN/; s/x \*/(x) */' $file | tr 'a-z' 'A-Z' | sort -k2 | uniq >out$1/$name.i
		awk '{ sum = (sum * 31 + length($0)) % 1000000007 } END { print sum }' out$1/$name.i >out$1/$name.s
		gzip -c out$1/$name.i >out$1/$name.o
		gunzip -c out$1/$name.o | cmp - out$1/$name.i || lost "$name does not unpack"
	done
	cat out$1/*.i out$1/*.s | sha256sum | cut -c1-64
}

builder() {
	while [ ! -e stop ]; do
		made=$(build $1)
		[ "$made" = "$expected" ] || lost "builder $1 made $made, not $expected"
		echo . >>builds
	done
}

# Leaves 48 MiB, checks that all of it is still what was written, and gives it back.
presser() {
	while [ ! -e stop ]; do
		free=$(awk '/MemAvailable/ { print int($2 / 1024) - 48 }' /proc/meminfo)
		[ "$free" -gt 8 ] || { sleep 1; continue; }
		n=0
		while [ $n -lt $((free / 4)) ]; do
			yes "block $n of memory" | head -c 4194304 >/mnt/$n
			n=$((n + 1))
		done
		while [ $n -gt 0 ]; do
			n=$((n - 1))
			yes "block $n of memory" | head -c 4194304 | cmp - /mnt/$n || lost "memory of block $n"
		done
		rm -f /mnt/*
		echo . >>fills
	done
}

torturer() {
	reference=$(/bin/torture)
	while [ ! -e stop ]; do
		[ "$(/bin/torture)" = "$reference" ] || lost "the torture program's sums"
		/bin/torture32 >/dev/null || lost "the 32-bit torture program"
		echo . >>tortures
	done
}

sources
expected=$(build 0)
: >builds
: >fills
: >tortures
builder 1 &
builder 2 &
presser &
torturer &
began=$(cut -d. -f1 /proc/uptime)
round=0
while now=$(cut -d. -f1 /proc/uptime) && [ $((now - began)) -lt "$limit" ]; do
	sleep 10
	round=$((round + 1))
	echo "soak: $((now - began)) s, $(wc -l <builds) builds, $(wc -l <fills) fills, $(wc -l <tortures) tortures"
done
touch stop
wait
echo "soak: over after $(wc -l <builds) builds, $(wc -l <fills) fills, $(wc -l <tortures) tortures"
