#!/usr/bin/env bash
# Requests of 4 KiB, 32 under way, all data in the page cache: qcow2 beside raw,
# and Guise beside `qemu-img bench`, in turns; medians of some rounds each (three times as
# many of Guise beside itself, where a twentieth counts), and of the quotients within the
# rounds.
# Writes a table for bench/disk/results.md to standard output.
#
#   bench/disk/random.sh GUISE [ROUNDS] [DIRECTORY]
set -euo pipefail
source "$(dirname "$(realpath "$0")")/turns.sh"
guise=$(realpath "$1")
rounds=${2:-7}
dir=$(mktemp -d -p "${3:-${TMPDIR:-/tmp}}" guise-bench.XXXXXX)
trap 'rm -rf "$dir"' EXIT
command -v qemu-img > /dev/null || { echo "qemu-img is not installed: there is nothing to compare with" >&2; exit 1; }
cd "$dir"
TIMEFORMAT='%U %S'
requests=500000
far=100000
allocating=16000

# Written in small pieces both: the kernel's writes take many times longer in the
# large ones that a convert leaves in the page cache.
head -c 512M /dev/urandom > source.raw
qemu-img convert -f raw -O qcow2 source.raw source.qcow2
for kind in raw qcow2; do
    dd if=source.$kind of=disk.$kind bs=8k status=none
    rm source.$kind
done
sync
empty() { qemu-img create -q -f qcow2 -o extended_l2=on empty.qcow2 1G; }

# Runs one benchmark and adds "requests per second, CPU µs per request" to a file.
once() {
    local file=$1 count=$2 seconds cpu
    shift 2
    cpu=$({ time "$@" -c "$count" > out; } 2>&1)
    seconds=$(sed -n 's/Run completed in \([0-9.]*\) seconds.*/\1/p' out)
    read -r user system <<< "$cpu"
    echo "$(echo "$count / $seconds" | bc -l) $(echo "($user + $system) * 1000000 / $count" | bc -l)" >> "$file"
}

# Two benchmarks in turns, each given by a function.
compare() {
    local label=$1
    count=$2
    in_turns "$rounds" "$3" "$4" figures
    printf '| %s | %.0f, %.2f | %.0f, %.2f | %.3fx | %.3fx |\n' "$label" \
        "$(median figures/first.1)" "$(median figures/first.2)" \
        "$(median figures/second.1)" "$(median figures/second.2)" \
        "$(median figures/quotient.1)" "$(median figures/quotient.2)"
}

guise_bench() { once "$1" "$count" "$guise" disk bench -q -d 32 -s 4096 "${@:2}"; }
qemu_bench() { once "$1" "$count" qemu-img bench -q -d 32 -s 4096 "${@:2}"; }
# An odd distance visits all of a disk, one far place after the other.
stride=$((1052672 + 4096))
qcow2_read() { guise_bench "$@" --random -f qcow2 disk.qcow2; }
raw_read() { guise_bench "$@" --random -f raw disk.raw; }
qcow2_write() { guise_bench "$@" --random -w -f qcow2 disk.qcow2; }
raw_write() { guise_bench "$@" --random -w -f raw disk.raw; }
guise_far_read() { guise_bench "$@" -S $stride -f qcow2 disk.qcow2; }
qemu_far_read() { qemu_bench "$@" -S $stride -f qcow2 disk.qcow2; }
guise_far_write() { guise_bench "$@" -S $stride -w -f qcow2 disk.qcow2; }
qemu_far_write() { qemu_bench "$@" -S $stride -w -f qcow2 disk.qcow2; }
guise_allocate() { empty; guise_bench "$@" -S 65536 -w -f qcow2 empty.qcow2; }
qemu_allocate() { empty; qemu_bench "$@" -S 65536 -w -f qcow2 empty.qcow2; }

machine
echo
echo "| 4 KiB, depth 32 (first beside second) | first (per s, CPU µs each) | second | rate | CPU |"
echo "|---|---|---|---|---|"
rounds=$((rounds * 3))
compare "random reads: Guise qcow2, Guise raw" $requests qcow2_read raw_read
compare "random writes: Guise qcow2, Guise raw" $requests qcow2_write raw_write
rounds=$((rounds / 3))
compare "far reads on qcow2: Guise, qemu-img" $far guise_far_read qemu_far_read
compare "far writes on qcow2: Guise, qemu-img" $far guise_far_write qemu_far_write
compare "allocating writes, extended L2: Guise, qemu-img" $allocating guise_allocate qemu_allocate
