#!/usr/bin/env python3
"""Disk, network and shared-directory work of the same guest under guise's software engine
and under QEMU's emulation: what it gets done, and for how much of the host's CPU time.

    run.py GUISE KERNEL INITRD [SECONDS]

The guest prints a line before and after each measurement; the CPU time of the processes that
run it is read at those lines, so that booting does not count. For QEMU that is also virtiofsd,
which serves the shared directory (it wants to be root). What is not installed is left out.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

TICKS = os.sysconf("SC_CLK_TCK")
DISK = 256 << 20
SENT = 64 << 20
PINGS = 2000
FILES = 5000
# A directory is listed so often: once takes less than a second.
TIMES = 5
LINE = 'console=ttyS0 quiet -- "{}"'


def cpu_seconds(processes):
    """Of these processes and those that they started: all threads, also those that have
    ended, and what the kernel does for them."""
    spent, started = {}, {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        spent[int(name)] = (int(fields[11]) + int(fields[12])) / TICKS
        started.setdefault(int(fields[1]), []).append(int(name))
    total, left = 0.0, list(processes)
    while left:
        process = left.pop()
        total += spent.get(process, 0.0)
        left += started.get(process, [])
    return total


def serve(listener):
    """Sends every client the same amount of zeros."""
    block = bytes(1 << 16)
    while True:
        try:
            client, _ = listener.accept()
            with client:
                for _ in range(SENT // len(block)):
                    client.sendall(block)
        except OSError:
            return


def guest_script(port, seconds, shares):
    steps = [
        f"io /dev/vda {seconds}",
        "ifconfig eth0 up",
        "udhcpc -i eth0 -s /etc/udhcpc.sh -n -q >/dev/null",
        "echo begin download",
        f"nc 10.0.2.2 {port} </dev/null | dd of=/dev/null bs=64k 2>/dev/null",
        f"echo end download {SENT >> 20} 0",
        "echo begin ping",
        f"ping -A -q -c {PINGS} 10.0.2.2 | tail -1",
        f"echo end ping {PINGS} 0",
    ]
    if shares:
        names = f"$(seq 1 {FILES})"
        steps += [
            "mount -t virtiofs t /mnt; cd /mnt",
            "echo begin create",
            f"for n in {names}; do : >$n; done",
            f"echo end create {FILES} 0",
            "echo begin stat",
            f"for n in $(seq {TIMES}); do echo 3 >/proc/sys/vm/drop_caches; ls -l | wc -l; done",
            f"echo end stat {TIMES * FILES} 0",
            "dd if=/dev/zero of=big bs=1M count=256 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches",
            "echo begin read",
            "dd if=big of=/dev/null bs=1M 2>/dev/null",
            "echo end read 256 0",
        ]
    return "; ".join(steps)


def run(command, helpers=()):
    """Name of each measurement: what was done, wall seconds, CPU seconds."""
    results, begun = {}, {}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as guest:
        processes = [guest.pid, *helpers]
        for line in guest.stdout:
            words = line.split()
            if len(words) == 2 and words[0] == "begin":
                begun[words[1]] = (time.monotonic(), cpu_seconds(processes))
            elif len(words) == 4 and words[0] == "end" and words[1] in begun:
                wall, cpu = begun[words[1]]
                wall, cpu = time.monotonic() - wall, cpu_seconds(processes) - cpu
                results[words[1]] = (int(words[2]), wall, cpu)
    return results


def file_server(directory, path):
    """QEMU's server of a shared directory, or nothing where there is none."""
    folders = "/usr/libexec:/usr/lib/qemu:" + os.environ.get("PATH", "")
    program = shutil.which("virtiofsd", path=folders)
    if not program:
        return None
    command = [program, f"--socket-path={path}", "-o", f"source={directory}", "-o", "cache=auto"]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not os.path.exists(path):
        if server.poll() is not None:
            return None
        time.sleep(0.01)
    return server


@contextlib.contextmanager
def fresh_file_system(scratch):
    """Where the shared directories are: for five minutes after files were deleted ext4 looks for
    inodes that were not in use lately, so that the next run paid for the one before."""
    image, place = os.path.join(scratch, "fresh"), os.path.join(scratch, "shares")
    os.mkdir(place)
    with open(image, "wb") as file:
        file.truncate(2 << 30)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    is_made = subprocess.run(["mkfs.ext4", "-q", "-F", image], **quiet).returncode == 0
    is_mounted = is_made and subprocess.run(
        ["mount", "-o", "loop", image, place], **quiet
    ).returncode == 0
    if not is_mounted:
        print("the shared directories are where others delete files: create may be off")
    try:
        yield place
    finally:
        if is_mounted:
            subprocess.run(["umount", place], check=True)


def qemu(kernel, initrd, disk, shared, scratch, seconds, port):
    """The same guest under QEMU's emulation."""
    command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-display", "none"]
    command += ["-serial", "stdio", "-monitor", "none", "-no-reboot", "-m", "768"]
    command += ["-drive", f"file={disk},format=raw,if=none,id=d,aio=io_uring"]
    command += ["-device", "virtio-blk-pci,drive=d", "-nic", "user,model=virtio-net-pci"]
    command += ["-kernel", kernel, "-initrd", initrd]
    os.mkdir(shared)
    path = os.path.join(scratch, "socket")
    server = file_server(shared, path)
    if server:
        command += ["-object", "memory-backend-memfd,id=m,size=768M,share=on"]
        command += ["-machine", "memory-backend=m", "-chardev", f"socket,id=c,path={path}"]
        command += ["-device", "vhost-user-fs-pci,chardev=c,tag=t"]
    command += ["-append", LINE.format(guest_script(port, seconds, server is not None))]
    results = run(command, [server.pid] if server else [])
    # It ends with the last connection.
    if server:
        server.wait()
    return results


def main():
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    guise, kernel, initrd = sys.argv[1:4]
    seconds = sys.argv[4] if len(sys.argv) == 5 else "5"
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    with tempfile.TemporaryDirectory() as scratch, fresh_file_system(scratch) as shares:
        disk, shared = os.path.join(scratch, "disk"), os.path.join(shares, "guise")
        os.mkdir(shared)
        # As `dd` and `qemu-img` do it. After one write of memory that nobody has touched, the
        # host's page cache is made of single pages, and a megabyte's copy takes twice as long.
        with open(disk, "wb") as file:
            for _ in range(DISK >> 20):
                file.write(bytes(1 << 20))
        ours = run(
            [guise, "boot", "--engine", "soft", "--kernel", kernel, "--initrd", initrd]
            + ["--memory", "768M", "--disk", f"{disk},format=raw", "--net", "user,host"]
            + ["--share", f"{shared},tag=t", "--timeout", "600"]
            + ["--append", LINE.format(guest_script(port, seconds, True))]
        )
        theirs = {}
        if shutil.which("qemu-system-x86_64"):
            theirs = qemu(
                kernel, initrd, disk, os.path.join(shares, "qemu"), scratch, seconds, port
            )
    print(f"{'':18}{'guise':>12}{'per CPU s':>12}{'QEMU':>12}{'per CPU s':>12}{'ratio':>8}")
    for name, (done, wall, cpu) in ours.items():
        row = f"{name:18}{done / wall:12.0f}{done / max(cpu, 0.01):12.0f}"
        if name in theirs:
            other, their_wall, their_cpu = theirs[name]
            ratio = (done / max(cpu, 0.01)) / (other / max(their_cpu, 0.01))
            row += f"{other / their_wall:12.0f}{other / max(their_cpu, 0.01):12.0f}{ratio:8.1f}"
        print(row)
    print("in a second: requests, MiB (download, read), packets (ping), files (create, stat)")


main()
