#!/usr/bin/env bash
# Conversions by Guise and by qemu-img in turns: wall and CPU seconds, the least
# of some rounds each. 2 GiB image, half of it holes; of the data half random,
# half text. Writes a table for bench/disk.md to standard output.
#
#   bench/disk/run.sh GUISE [ROUNDS] [DIRECTORY]
set -euo pipefail
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

# The least wall and the least CPU time of all rounds, both programs in turns.
measure() {
    local label=$1 source=$2 from=$3
    shift 3
    local best=() words wall cpu
    for round in $(seq "$rounds"); do
        for program in guise qemu-img; do
            rm -f target*
            sync
            case $program in
                guise) words=$({ time "$guise" disk convert -f "$from" "$@" "$source" target > /dev/null; } 2>&1) ;;
                *) words=$({ time qemu-img convert -f "$from" "$@" "$source" target > /dev/null; } 2>&1) ;;
            esac
            read -r wall user system <<< "$words"
            cpu=$(echo "$user + $system" | bc -l)
            eval "walls_${program/-/_}+=(\"$wall\"); cpus_${program/-/_}+=(\"$cpu\")"
        done
    done
    least() { printf '%s\n' "$@" | sort -g | head -1; }
    local gw gc qw qc
    gw=$(least "${walls_guise[@]}"); gc=$(least "${cpus_guise[@]}")
    qw=$(least "${walls_qemu_img[@]}"); qc=$(least "${cpus_qemu_img[@]}")
    walls_guise=(); cpus_guise=(); walls_qemu_img=(); cpus_qemu_img=()
    printf '| %s | %.2f, %.2f | %.2f, %.2f | %.2fx | %.2fx |\n' "$label" "$gw" "$gc" "$qw" "$qc" \
        "$(echo "$gw / $qw" | bc -l)" "$(echo "$gc / $qc" | bc -l)"
}
walls_guise=(); cpus_guise=(); walls_qemu_img=(); cpus_qemu_img=()

echo "$(qemu-img --version | head -1); $(nproc) processors, Linux $(uname -r | cut -d- -f1), $(stat -f -c %T .)"
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
