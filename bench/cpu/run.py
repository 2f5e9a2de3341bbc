#!/usr/bin/env python3
"""CPU seconds of the same workloads natively, under QEMU's emulation and under Guise.

    run.py GUISE KERNEL INITRD [ROUNDS [WORKLOAD...]]

Each round runs every workload once in each place, in turns. What counts are the CPU
seconds of the whole process tree; of a guest's process those from the line in which the
workload says that it begins to the one in which it says what it has computed. A result
counts only with the checksum that the host has computed. Two more
figures: what two busy threads on two vCPUs get done in a time beside one (and natively: no
guest can do better than the host's processors, which may share a core or be in use), and
the memory of Guise's process beyond the guest's.
Prints a table and writes cpu.json beside it; bench/cpu/results.md keeps what was published.
"""

import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TIME_LIMIT = 300


def cpio_entry(name, mode, content):
    """One file in cpio's newc format."""
    fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
    entry = b"070701" + b"".join(b"%08x" % field for field in fields)
    entry += name.encode() + b"\0"
    entry += b"\0" * (-len(entry) % 4) + content
    return entry + b"\0" * (-len(entry) % 4)


def build(directory, initrd):
    """Compiles the workloads and adds them to the initial RAM disk."""
    work = os.path.join(directory, "work")
    flags = ["-O2", "-fno-math-errno", "-static", "-pthread"]
    subprocess.run(["gcc", *flags, "-o", work, os.path.join(HERE, "work.c")], check=True)
    with open(initrd, "rb") as file:
        archive = file.read()
    with open(work, "rb") as file:
        archive += b"\0" * (-len(archive) % 4)
        archive += cpio_entry("bin/work", 0o100755, file.read())
        archive += cpio_entry("TRAILER!!!", 0, b"")
    together = os.path.join(directory, "initrd")
    with open(together, "wb") as file:
        file.write(archive)
    return work, together


def run(command):
    """CPU seconds of a command and its children, those of the process from a workload's
    begin to its end, and what was printed."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    limit = threading.Timer(TIME_LIMIT, process.kill)
    limit.start()
    # The clock of another process's CPU time, as clock_getcpuclockid(3) has it.
    clock = (~process.pid << 3) | 2
    lines, marks = [], []
    for line in process.stdout:
        if line.startswith((b"begin ", b"work ")):
            marks.append(time.clock_gettime(clock))
        lines.append(line.decode(errors="replace"))
    limit.cancel()
    _, process.returncode, used = os.wait4(process.pid, 0)
    between = marks[1] - marks[0] if len(marks) == 2 else None
    return used.ru_utime + used.ru_stime, between, "".join(lines)


def checksum(name, output):
    for line in output.splitlines():
        words = line.split()
        if words[:2] == ["work", name] and len(words) == 3:
            return words[2]
    return None


def beyond_guest(pid):
    """MiB of a process's memory that are not its guest's RAM."""
    total, counts = 0, True
    with open(f"/proc/{pid}/smaps", encoding="utf-8") as file:
        for line in file:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                counts = "memfd:guise-ram" not in line
            elif line.startswith("Pss:") and counts:
                total += int(line.split()[1])
    return total / 1024


def figures(native, command):
    """Two threads beside one, natively and in a guest in turns, medians of three tries, and
    memory after a boot."""
    pairs = {"pair_native": [], "pair": []}
    for _ in range(3):
        for place, arguments in [("pair_native", native("pair")),
                                 ("pair", [*command("pair"), "--cpus", "2"])]:
            found = checksum("pair", run(arguments)[-1])
            pairs[place].append(int(found or "0", 16) / 100)
    process = subprocess.Popen(
        [*command("nothing")[:-1], 'console=ttyS0 quiet -- "echo ready; sleep 100"'],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    memory = None
    for line in process.stdout:
        if line.strip() == b"ready":
            memory = beyond_guest(process.pid)
            break
    process.kill()
    process.wait()
    medians = {place: statistics.median(tries) for place, tries in pairs.items()}
    return {**medians, "tries": pairs, "memory": memory}


def main():
    guise, kernel, initrd = sys.argv[1:4]
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    qemu = shutil.which("qemu-system-x86_64")
    with tempfile.TemporaryDirectory() as directory:
        work, archive = build(directory, initrd)
        kinds = dict(reversed(line.split()) for line in run([work, "list"])[-1].splitlines())
        names = sys.argv[5:] or list(kinds)
        append = "console=ttyS0 quiet -- \"work {}\""
        places = {
            "native": lambda name: [work, name],
            "guise": lambda name: [
                guise, "boot", "--engine", "soft", "--memory", "512M", "--kernel", kernel, "--initrd", archive,
                "--append", append.format(name)],
        }
        if qemu:
            places["tcg"] = lambda name: [
                qemu, "-accel", "tcg", "-cpu", "max,-erms,-fsrm", "-m", "512", "-nodefaults",
                "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", kernel,
                "-initrd", archive, "-append", append.format(name)]
        else:
            print("no qemu-system-x86_64: nothing to compare with but the host")
        samples = {place: {name: [] for name in [*names, "nothing"]} for place in places}
        wrong = []
        for _ in range(rounds):
            for name in [*names, "nothing"]:
                expected = None
                for place, command in places.items():
                    spent, between, output = run(command(name))
                    found = checksum(name, output)
                    if place != "native" and name != "nothing":
                        spent = between
                    expected = found if place == "native" else expected
                    if name != "nothing" and (found is None or found != expected):
                        wrong.append(f"{name} under {place}: {found}, not {expected}")
                    else:
                        samples[place][name].append(spent)
        found = figures(places["native"], places["guise"])
    report(kinds, names, samples, found)
    for line in wrong:
        print("wrong:", line)
    return 1 if wrong else 0


def report(kinds, names, samples, found):
    medians = {}
    for place, times in samples.items():
        medians[place] = {"boot": statistics.median(times["nothing"])}
        for name in names:
            if times[name]:
                medians[place][name] = statistics.median(times[name])
    places = [place for place in ("native", "tcg", "guise") if place in medians]
    print(f"{'':16}" + "".join(f"{place:>9}" for place in places) + "   guise/native   tcg/guise")
    ratios = {}
    for name in [*names, "boot"]:
        times = [medians[place].get(name) for place in places]
        line = f"{name:16}" + "".join("        -" if t is None else f"{t:9.2f}" for t in times)
        ours = medians["guise"].get(name)
        if ours:
            kind = kinds.get(name, "boot")
            if name in medians["native"] and name != "boot":
                ratios.setdefault((kind, "native"), []).append(ours / medians["native"][name])
                line += f"{ours / medians['native'][name]:15.2f}"
            else:
                line += " " * 15
            if name in medians.get("tcg", {}):
                ratios.setdefault((kind, "tcg"), []).append(medians["tcg"][name] / ours)
                line += f"{medians['tcg'][name] / ours:12.2f}"
        print(line)
    for (kind, place), values in sorted(ratios.items()):
        if kind != "boot":
            mean = math.exp(sum(map(math.log, values)) / len(values))
            what = "guise/native" if place == "native" else "tcg/guise"
            print(f"{kind} workloads, {what}, geometric mean: {mean:.2f}")
    print(f"two busy threads on two vCPUs do {found['pair']:.2f} times the work of one,"
          f" natively {found['pair_native']:.2f}")
    print(f"memory beyond the guest's 512 MiB after boot: {found['memory'] or 0:.0f} MiB")
    with open("cpu.json", "w", encoding="utf-8") as file:
        json.dump({"medians": medians, "samples": samples, "figures": found}, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
