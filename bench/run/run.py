#!/usr/bin/env python3
"""Times `guise run --rm IMAGE true` beside podman, in turns, and prints medians.

usage: run.py GUISE [ROUNDS [IDLE]]

The image is a static busybox. The daemon is up, and keeps its things in a folder of its
own. podman takes part where it is installed. With GUISE_KERNEL (docs/microvms.md) microVMs
on the software engine take part, and IDLE of them (4 where it is not said) are left idle
to see what that costs.
"""

import json
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
    for name in ("true", "sleep"):
        os.symlink("busybox", os.path.join(root, "bin", name))
    tar = os.path.join(folder, "box.tar")
    subprocess.run(["tar", "-C", root, "-cf", tar, "."], check=True)
    return tar


def timed(command, environment):
    begin = time.monotonic()
    subprocess.run(command, env=environment, check=True, stdin=subprocess.DEVNULL,
                   stdout=subprocess.DEVNULL)
    return (time.monotonic() - begin) * 1000


def memory_and_time(pid):
    """Resident memory in MiB and processor seconds of a process."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        resident = next(line for line in status if line.startswith("VmRSS")).split()[1]
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    ticks = int(fields[11]) + int(fields[12])
    return int(resident) / 1024, ticks / os.sysconf("SC_CLK_TCK")


def machine_of(pid):
    """The process that is the machine: a worker's first process stays outside of its jail and
    only waits for the one inside."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as children:
        inside = children.read().split()
    return int(inside[0]) if inside else pid


def idle_machines(guise, count, environment):
    """What machines cost that nobody asks for anything."""
    names = [f"idle{number}" for number in range(count)]
    begin = time.monotonic()
    for name in names:
        subprocess.run([guise, "run", "-d", "--name", name, "--as", "microvm", "--engine", "soft",
                        "-m", "128M", "box:1", "sleep", "100000"], env=environment, check=True,
                       stdout=subprocess.DEVNULL)
    text = subprocess.run([guise, "inspect"] + names, env=environment, check=True,
                          stdout=subprocess.PIPE).stdout
    print(f"{'start ' + str(count) + ' microVMs':20} {time.monotonic() - begin:8.1f} s")
    firsts = [instance["status"]["pid"] for instance in json.loads(text)]
    pids = [machine_of(pid) for pid in firsts]
    waiting = [memory_and_time(first)[0] for first, pid in zip(firsts, pids) if first != pid]
    time.sleep(5)
    costs = []
    for pid in pids:
        # The guest's memory is a file in memory; all else that is resident is the worker's.
        with open(f"/proc/{pid}/status", encoding="ascii") as status:
            fields = dict(line.split(":", 1) for line in status)
        kibibytes = lambda name: int(fields[name].split()[0])
        costs.append((kibibytes("RssShmem") / 1024, kibibytes("RssAnon") / 1024,
                      kibibytes("RssFile") / 1024, memory_and_time(pid)[1]))
    begin = time.monotonic()
    time.sleep(20)
    passed = time.monotonic() - begin
    used = [memory_and_time(pid)[1] - before[3] for pid, before in zip(pids, costs)]
    answers = [timed([guise, "exec", name, "true"], environment) for name in names]
    lists = [timed([guise, "ps", "-q"], environment) for _ in range(5)]
    median = [statistics.median(column) for column in zip(*costs)]
    beyond = median[1] + median[2] + (statistics.median(waiting) if waiting else 0)
    print(f"{'idle microVM':20} {median[0]:8.1f} MiB of the guest; beyond it {beyond:.1f} MiB: "
          f"{median[1]:.1f} of the worker, {median[2]:.1f} of files, the rest of the process that "
          f"waits for it; {statistics.median(used) / passed * 100:.2f} % of a processor")
    print(f"{'ps beside ' + str(count):20} {statistics.median(lists):8.1f} ms median, "
          f"{max(lists):.1f} at worst")
    print(f"{'exec in one of ' + str(count):20} {statistics.median(answers):8.1f} ms median, "
          f"{max(answers):.1f} at worst")
    subprocess.run([guise, "rm", "-f"] + names, env=environment, check=True,
                   stdout=subprocess.DEVNULL)


def main():
    guise = os.path.abspath(sys.argv[1])
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    idle = int(sys.argv[3]) if len(sys.argv) > 3 else 4
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
    if os.environ.get("GUISE_KERNEL"):
        commands["guise, microVM"] = [
            guise, "run", "--rm", "--as", "microvm", "--engine", "soft", "box:1", "true"]
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
    if os.environ.get("GUISE_KERNEL") and idle:
        idle_machines(guise, idle, environment)
    os.kill(pid, 15)
    if "podman, no network" in commands:
        subprocess.run(["podman", "rmi", "-f", "guise-bench:1"], check=False,
                       stdout=subprocess.DEVNULL)
    time.sleep(0.5)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
