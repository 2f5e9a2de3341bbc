#!/usr/bin/env bash
# Conversions by Guise and by qemu-img in turns: wall and CPU seconds, medians of
# some rounds each, and of the quotients within the rounds. 2 GiB image, half of it
# holes; of the data half random, half text. Writes a table for
# bench/disk/results.md to standard output.
#
#   bench/disk/run.sh GUISE [ROUNDS] [DIRECTORY]
set -euo pipefail
source "$(dirname "$(realpath "$0")")/turns.sh"
guise=$(realpath "$1")
rounds=${2:-3}
dir=$(mktemp -d -p "${3:-${TMPDIR:-/tmp}}" guise-bench.XXXXXX)
trap 'rm -rf "$dir"' EXIT
command -v qemu-img > /dev/null || { echo "qemu-img is not installed: there is nothing to compare with" >&2; exit 1; }
cd "$dir"
TIMEFORMAT='%R %U %S'

# 1 GiB of data in pieces of 32 MiB, each followed by a hole of the same size.
truncate -s 2G source.raw
yes 'A line of text, as logs and sources have them: the quick brown fox.' | head -c 32M > text || true
for piece in $(seq 0 31); do
    if (( piece % 2 )); then data=text; else head -c 32M /dev/urandom > random; data=random; fi
    dd if=$data of=source.raw bs=1M seek=$((piece * 64)) conv=notrunc status=none
done
rm -f text random
qemu-img convert -f raw -O qcow2 source.raw source.qcow2
qemu-img convert -f raw -O vhdx source.raw source.vhdx

# Runs one conversion and adds "wall seconds, CPU seconds" to a file.
once() {
    local file=$1 words wall user system
    shift
    rm -f target*
    sync
    words=$({ time "$@" target > /dev/null; } 2>&1)
    read -r wall user system <<< "$words"
    echo "$wall $(echo "$user + $system" | bc -l)" >> "$file"
}
ours() { once "$1" "$guise" disk convert "${options[@]}"; }
theirs() { once "$1" qemu-img convert "${options[@]}"; }

measure() {
    local label=$1
    options=(-f "$3" "${@:4}" "$2")
    in_turns "$rounds" ours theirs figures
    printf '| %s | %.2f, %.2f | %.2f, %.2f | %.2fx | %.2fx |\n' "$label" \
        "$(median figures/first.1)" "$(median figures/first.2)" \
        "$(median figures/second.1)" "$(median figures/second.2)" \
        "$(median figures/quotient.1)" "$(median figures/quotient.2)"
}

machine
echo
echo "| conversion | Guise (wall s, CPU s) | qemu-img (wall s, CPU s) | wall | CPU |"
echo "|---|---|---|---|---|"
measure "raw to qcow2" source.raw raw -O qcow2
measure "qcow2 to raw" source.qcow2 qcow2 -O raw
measure "to qcow2 zlib" source.raw raw -O qcow2 -c -o compression_type=zlib
measure "to qcow2 zstd" source.raw raw -O qcow2 -c -o compression_type=zstd
measure "to vmdk streamOptimized" source.raw raw -O vmdk -o subformat=streamOptimized
measure "to vhdx" source.raw raw -O vhdx
measure "vhdx to raw" source.vhdx vhdx -O raw
