#!/usr/bin/env python3
"""Pulls an image of ten layers and 500 MB from a registry and unpacks it, with `guise image` and with
its peers, in turns, and prints a table.

    run.py GUISE [ROUNDS]

The image is made here from a fixed seed: files of 4 KiB to 1 MiB, half of each easy to compress. The
registry is Debian's docker-registry on a free port of this host. Each tool starts with an empty store
in each round. podman unpacks while it pulls; umoci unpacks what skopeo has pulled.
"""

import io
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

LAYERS = 10
LAYER_BYTES = 50 << 20


def layer(path, seed):
    """One layer, of files that no other layer has."""
    source = random.Random(seed)
    with tarfile.open(path, "w") as tar:
        left, number = LAYER_BYTES, 0
        while left > 0:
            size = min(left, 1 << source.randint(12, 20))
            data = source.randbytes(size // 2) + (b"%08d text that repeats\n" % number) * (size // 48)
            info = tarfile.TarInfo(f"layer{seed}/{number % 50}/file{number}")
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
            left -= size
            number += 1


def image(directory):
    """An OCI layout of the layers, made by umoci."""
    layout = os.path.join(directory, "layout")
    run(["umoci", "init", "--layout", layout])
    run(["umoci", "new", "--image", f"{layout}:big"])
    for number in range(LAYERS):
        path = os.path.join(directory, "layer.tar")
        layer(path, number)
        run(["umoci", "raw", "add-layer", "--image", f"{layout}:big", path])
    return layout


def run(command, **options):
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, **options)
    if result.returncode != 0:
        sys.exit(f"{command}: {result.stderr.decode()}")
    return result.stdout.decode()


def registry(directory):
    """Starts a registry and gives its process and address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = "127.0.0.1:%d" % probe.getsockname()[1]
    config = os.path.join(directory, "registry.yml")
    with open(config, "w") as file:
        file.write(f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {directory}/blobs}}}}\n"
                   f"http: {{addr: '{address}'}}\n")
    process = subprocess.Popen(["docker-registry", "serve", config], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    for _ in range(100):
        try:
            socket.create_connection(address.split(":"), 1).close()
            return process, address
        except OSError:
            time.sleep(0.05)
    sys.exit("the registry does not answer")


def tools(guise, name, store):
    """Commands of each tool, to be run one after the other."""
    podman = ["podman", "--root", f"{store}/root", "--runroot", f"{store}/run", "pull", "-q", "--tls-verify=false"]
    return {
        "guise image": [[guise, "image", "--store", store, "pull", "-q", "--unpack", "layers", name]],
        "guise image, EROFS": [[guise, "image", "--store", store, "pull", "-q", "--unpack", "erofs", name]],
        "skopeo, umoci": [
            ["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{name}", f"oci:{store}/layout:big"],
            ["umoci", "unpack", "--image", f"{store}/layout:big", f"{store}/bundle"],
        ],
        "podman pull": [podman + [name]],
    }


def main():
    guise = os.path.abspath(sys.argv[1])
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    needed = ["docker-registry", "skopeo", "umoci"]
    missing = [tool for tool in needed if not shutil.which(tool)]
    if missing:
        sys.exit(f"needs {', '.join(missing)} (Debian's packages of these names)")
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as directory:
        layout = image(directory)
        process, address = registry(directory)
        try:
            name = f"{address}/bench/big:1"
            run(["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:big", f"docker://{name}"])
            shutil.rmtree(layout)
            times = {}
            for _ in range(rounds):
                for tool, commands in tools(guise, name, os.path.join(directory, "store")).items():
                    if not shutil.which(commands[0][0]):
                        continue
                    store = os.path.join(directory, "store")
                    os.mkdir(store)
                    os.sync()
                    start = time.perf_counter()
                    for command in commands:
                        run(command)
                    times.setdefault(tool, []).append(time.perf_counter() - start)
                    shutil.rmtree(store)
        finally:
            process.terminate()
            process.wait()
        print(f"{rounds} rounds in turns on {os.cpu_count()} CPUs, Linux {os.uname().release}, "
              f"load {os.getloadavg()[0]:.1f}\n")
        own = statistics.median(times["guise image"])
        print("| tool | median s | of `guise image` | fastest s |")
        print("|---|---|---|---|")
        for tool, sample in times.items():
            median = statistics.median(sample)
            print(f"| {tool} | {median:.2f} | {median / own:.2f} | {min(sample):.2f} |")


if __name__ == "__main__":
    main()
