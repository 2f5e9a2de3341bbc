#!/usr/bin/env python3
"""Times `guise run --rm IMAGE true` beside podman, in turns, and prints medians.

usage: run.py GUISE [ROUNDS]

The image is a static busybox. The daemon is up, and keeps its things in a folder of its
own. podman takes part where it is installed.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time


def make_image(folder):
    """A root file system with busybox, as a tar file."""
    busybox = shutil.which("busybox")
    if not busybox:
        sys.exit("needs a static busybox (Debian: busybox-static)")
    root = os.path.join(folder, "root")
    os.makedirs(os.path.join(root, "bin"))
    shutil.copy(busybox, os.path.join(root, "bin/busybox"))
    os.symlink("busybox", os.path.join(root, "bin/true"))
    tar = os.path.join(folder, "box.tar")
    subprocess.run(["tar", "-C", root, "-cf", tar, "."], check=True)
    return tar


def timed(command, environment):
    begin = time.monotonic()
    subprocess.run(command, env=environment, check=True, stdin=subprocess.DEVNULL)
    return (time.monotonic() - begin) * 1000


def memory_and_time(pid):
    """Resident memory in MiB and processor seconds of a process."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        resident = next(line for line in status if line.startswith("VmRSS")).split()[1]
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    ticks = int(fields[11]) + int(fields[12])
    return int(resident) / 1024, ticks / os.sysconf("SC_CLK_TCK")


def main():
    guise = os.path.abspath(sys.argv[1])
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    folder = tempfile.mkdtemp(prefix="guise-bench-")
    environment = dict(os.environ, GUISE_STATE=f"{folder}/state", GUISE_RUN=f"{folder}/run",
                       GUISE_IMAGES=f"{folder}/images")
    tar = make_image(folder)
    subprocess.run([guise, "image", "--store", f"{folder}/images", "import", "-q", tar, "box:1"],
                   check=True)
    run = [guise, "run", "--rm", "--as", "container"]
    commands = {
        "guise": run + ["box:1", "true"],
        "guise, no network": run + ["--network", "none", "box:1", "true"],
    }
    if shutil.which("podman"):
        subprocess.run(["podman", "import", "-q", tar, "guise-bench:1"], check=True,
                       stdout=subprocess.DEVNULL)
        # crun takes no host that has both kinds of cgroups.
        runtime = ["--runtime", "runc"] if shutil.which("runc") else []
        commands["podman, no network"] = [
            "podman", *runtime, "run", "--rm", "--ulimit", "nofile=512:512", "--ulimit",
            "nproc=512:512", "--network", "none", "guise-bench:1", "true"]
    for name, command in list(commands.items()):
        try:
            timed(command, environment)
        except subprocess.CalledProcessError as error:
            if not name.startswith("podman"):
                raise
            print(f"{name}: left out, as it ends with {error.returncode} here")
            del commands[name]
    times = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            times[name].append(timed(command, environment))
    for name, all_times in times.items():
        print(f"{name:20} {statistics.median(all_times):8.1f} ms median of {rounds}, "
              f"{min(all_times):.1f} at best")
    with open(f"{folder}/run/daemon.lock", encoding="ascii") as lock:
        pid = int(lock.read())
    memory, before = memory_and_time(pid)
    time.sleep(10)
    _, after = memory_and_time(pid)
    print(f"{'idle daemon':20} {memory:8.1f} MiB resident, {(after - before) * 10:.2f} % of a processor")
    os.kill(pid, 15)
    if "podman, no network" in commands:
        subprocess.run(["podman", "rmi", "-f", "guise-bench:1"], check=False,
                       stdout=subprocess.DEVNULL)
    time.sleep(0.5)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
