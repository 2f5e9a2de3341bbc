#!/usr/bin/env python3
"""The host's side of a disk alone: a guest that only drives the ring, beside a program that
reads the same file through io_uring (qemu-img bench). 4 KiB reads, in turns: past the page
cache, where the disk sets the pace, and with all data in it, where the processors do.

    ring.py GUISE [ROUNDS] [ENGINE]

The guest looks for what comes back without a pause, so two processors have to be free.
"""

import os
import re
import subprocess
import sys
import tempfile
import time

SOURCES = os.path.join(os.path.dirname(__file__), "../../crates/testkit/guests/baremetal")
DISK = 256 << 20
COUNTS = {"depth-32": 1 << 19, "depth-1": 1 << 16}
# How the file is opened: the name here, Guise's option, qemu-img's.
MODES = [("direct", ",cache=none", ["-t", "none"]), ("cached", "", [])]
FLAGS = """-std=gnu11 -O2 -g0 -ffreestanding -nostdlib -static -fno-pic -no-pie -mno-red-zone
    -mgeneral-regs-only -fno-stack-protector -fno-asynchronous-unwind-tables -fcf-protection=none
    -Wl,--build-id=none -Wl,-z,max-page-size=4096 -Wl,--no-warn-rwx-segments
    -Wl,-z,noexecstack -Wl,--defsym=ap_main=start"""


def guest(directory):
    image = os.path.join(directory, "guest")
    files = [os.path.join(SOURCES, name) for name in ("start.S", "lib.c")]
    files.append(os.path.join(os.path.dirname(__file__), "disk_rate.c"))
    script = os.path.join(SOURCES, "link.ld")
    command = ["gcc", *FLAGS.split(), "-T", script, "-I", SOURCES, "-o", image, *files]
    subprocess.run(command, check=True)
    return image


def ours(guise, engine, image, disk, option):
    """Reads in a second, by depth."""
    rates, begun = {}, {}
    command = [guise, "boot", "--engine", engine, "--kernel", image, "--memory", "64M"]
    command += ["--testdev", "--timeout", "300", "--disk", f"{disk},format=raw{option}"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            now, words = time.monotonic(), line.split()
            if words[:1] == ["begin"]:
                begun[words[1]] = now
            elif words[:1] == ["end"] and words[1] in COUNTS:
                rates[words[1]] = COUNTS[words[1]] / (now - begun[words[1]])
    return rates


def plain(disk, depth, options):
    command = ["qemu-img", "bench", "-f", "raw", "-i", "io_uring", "-d", str(depth), "-s", "4096"]
    command += options
    # An odd distance visits all of a disk, one far place after the other.
    command += ["-S", str(1052672 + 4096), "-c", str(COUNTS[f"depth-{depth}"]), disk]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds = float(re.search(r"completed in ([0-9.]+) seconds", said).group(1))
    return COUNTS[f"depth-{depth}"] / seconds


def main():
    if len(sys.argv) not in (2, 3, 4):
        sys.exit(__doc__)
    guise = sys.argv[1]
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    engine = sys.argv[3] if len(sys.argv) > 3 else "soft"
    with tempfile.TemporaryDirectory() as directory:
        disk = os.path.join(directory, "disk")
        with open(disk, "wb") as file:
            for _ in range(DISK >> 20):
                file.write(os.urandom(1 << 20))
        image = guest(directory)
        best, theirs = {}, {}
        for _ in range(rounds):
            for mode, option, options in MODES:
                for name, rate in ours(guise, engine, image, disk, option).items():
                    name = f"{mode} {name}"
                    best[name] = max(best.get(name, 0), rate)
                for depth in (32, 1):
                    name = f"{mode} depth-{depth}"
                    theirs[name] = max(theirs.get(name, 0), plain(disk, depth, options))
    print(f"{'':16}{'guise':>10}{'io_uring':>10}{'ratio':>8}")
    for name, rate in best.items():
        print(f"{name:16}{rate:10.0f}{theirs[name]:10.0f}{rate / theirs[name]:8.2f}")
    print("reads of 4 KiB in a second, the best of each")


main()
