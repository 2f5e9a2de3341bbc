#!/bin/sh
# The main job, shown: Debian is fetched, and a shell opens in it; where there is no
# terminal, one command runs in it as a container and as a microVM, then a WebAssembly
# program, and what each cost is printed.
set -eu
guise=$1
image=debian:12-slim
program=${GUISE_ASSETS:-assets}/programs/hello.wasm

fetch() {
	"$guise" image inspect "$1" >/dev/null 2>&1 || echo "Fetching $1"
	"$guise" image pull --missing --quiet "$1" >/dev/null
}
fetch "$image"
fetch kernel:debian-12
if [ -t 0 ] && [ -t 1 ]; then
	echo "A shell in $image, as: $("$guise" run --explain "$image" | head -n 1). Leave with 'exit'."
	exec "$guise" run --rm -it "$image" sh
fi
timed() {
	begin=$(date +%s%N)
	"$guise" run --rm --as "$@"
	end=$(date +%s%N)
	echo "as $1: $(((end - begin) / 1000000)) ms from start to end"
}
for as in container microvm; do
	"$guise" run --rm --as "$as" "$image" true
	timed "$as" "$image" sh -c '. /etc/os-release; echo "$PRETTY_NAME on $(uname -r)"'
done
timed wasm "$program" world
