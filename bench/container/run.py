#!/usr/bin/env python3
"""Starts containers with `guise oci` and with its peers, in turns, and prints a table.

    run.py GUISE [ROUNDS]

Each round runs every runtime once: create, start, run to its end and delete /bin/true of a static
busybox, in the foreground, with the configuration that `runc spec` writes. In turns, so that what
the machine does besides hits all alike. crun refuses hosts that mount cgroup v1 and v2 beside each
other; the script therefore moves into a mount namespace of its own without the v2 mount, if both are
there. bwrap makes no cgroups and no state: it is the floor, not a peer. CPU time is that of the
runtime and of all that it waited for; unlike the time that passes, it hardly depends on what else the
machine does.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time


def private_view():
    """Re-executes this script where only cgroup v1 is mounted, when both are."""
    if os.environ.get("BENCH_PRIVATE"):
        return
    kinds = {}
    with open("/proc/self/mountinfo") as table:
        for line in table:
            left, right = line.split(" - ", 1)
            kinds.setdefault(right.split()[0], []).append(left.split()[4])
    umounts = kinds.get("cgroup2", []) if "cgroup" in kinds else []
    script = "mount --make-rprivate /; " + "".join(f"umount {m}; " for m in umounts) + 'exec "$@"'
    os.environ["BENCH_PRIVATE"] = "1"
    os.execvp("unshare", ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable] + sys.argv)


def bundle(directory):
    """A bundle of a static busybox."""
    root = os.path.join(directory, "rootfs")
    for name in ["bin", "proc", "sys", "dev"]:
        os.makedirs(os.path.join(root, name))
    busybox = shutil.which("busybox") or sys.exit("needs busybox (Debian: busybox-static)")
    shutil.copy(busybox, os.path.join(root, "bin/busybox"))
    os.symlink("busybox", os.path.join(root, "bin/true"))
    subprocess.run(["runc", "spec"], cwd=directory, check=True)
    path = os.path.join(directory, "config.json")
    with open(path) as file:
        config = json.load(file)
    config["process"]["terminal"] = False
    config["process"]["args"] = ["/bin/true"]
    with open(path, "w") as file:
        json.dump(config, file)


def once(command, directory):
    """Milliseconds of one run: those that passed, and those of the processor."""
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=errors)
        _, status, used = os.wait4(process.pid, 0)
        took = (time.perf_counter() - start) * 1000
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            errors.seek(0)
            sys.exit(f"{command}: {errors.read().decode()}")
    return took, (used.ru_utime + used.ru_stime) * 1000


def peak_memory(command, directory):
    """Peak resident memory of the runtime in KiB, by time(1), which is small itself."""
    result = subprocess.run(["/usr/bin/time", "-f", "%M"] + command, cwd=directory,
                            stdin=subprocess.DEVNULL, capture_output=True, check=True)
    return int(result.stderr.decode().split()[-1])


def version(command):
    text = subprocess.run(command, capture_output=True).stdout.decode()
    return text.splitlines()[0] if text else "?"


def main():
    guise = os.path.abspath(sys.argv[1])
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    private_view()
    # What callers are given, and the same as a command of the whole binary.
    peers = {"guise-oci": [guise + "-oci", "run"], "guise oci": [guise, "oci", "run"]}
    for name in ["crun", "runc"]:
        if shutil.which(name):
            peers[name] = [name, "run"]
    with tempfile.TemporaryDirectory() as directory:
        bundle(directory)
        commands = {name: (lambda i, c=command: c + [f"bench-{i}"]) for name, command in peers.items()}
        if shutil.which("bwrap"):
            bwrap = ["bwrap", "--unshare-all", "--bind", "rootfs", "/", "--proc", "/proc", "--dev",
                     "/dev", "/bin/true"]
            commands["bwrap"] = lambda i: bwrap
        times = {name: [] for name in commands}
        for i in range(rounds):
            for name, command in commands.items():
                times[name].append(once(command(i), directory))
        print(f"{rounds} rounds in turns on {os.cpu_count()} CPUs, Linux {os.uname().release}, "
              f"load {os.getloadavg()[0]:.1f}\n")
        own = statistics.median(took for took, _ in times["guise-oci"])
        print("| runtime | median ms | of `guise-oci` | fastest ms | 90th of 100 ms | CPU ms | peak memory KiB |")
        print("|---|---|---|---|---|---|---|")
        for name, command in commands.items():
            sample = sorted(took for took, _ in times[name])
            used = statistics.median(used for _, used in times[name])
            memory = min(peak_memory(command(f"m{j}"), directory) for j in range(5))
            median = statistics.median(sample)
            print(f"| {name} | {median:.2f} | {median / own:.2f} | {sample[0]:.2f} | "
                  f"{sample[int(len(sample) * 0.9)]:.2f} | {used:.2f} | {memory} |")
        for name in ["crun", "runc", "bwrap"]:
            if name in commands:
                print(f"\n{version([name, '--version'])}", end="")
        print()


if __name__ == "__main__":
    main()
