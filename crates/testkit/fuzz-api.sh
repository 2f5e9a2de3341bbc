#!/bin/sh
# Sends the API of a daemon of its own requests made from its description, right and wrong
# ones, by schemathesis. Fails on an answer that the description does not have (a 5xx is none
# of them), on one that does not come, and when the daemon is gone afterwards.
#
#     fuzz-api.sh GUISE EXAMPLES
set -eu
guise=$(realpath "$1")
examples=$2
place=$(mktemp -d)
tools=${TMPDIR:-/tmp}/guise-schemathesis
daemon=
finish() {
    if test -n "$daemon" && kill -0 "$daemon" 2>/dev/null; then
        # Instances outlive their daemon.
        "$guise" rm -f it >/dev/null 2>&1 || true
        kill "$daemon"
    fi
    rm -rf "$place"
}
trap finish EXIT
trap 'exit 130' INT TERM

if ! test -x "$tools/bin/schemathesis"; then
    python3 -m venv "$tools" || { echo "schemathesis needs a venv: apt-get install python3-venv"; exit 1; }
    "$tools/bin/pip" install --quiet 'schemathesis>=4,<5'
fi

export GUISE_STATE="$place/state" GUISE_RUN="$place/run" GUISE_IMAGES="$place/images"
# What random names of images lead to is not to be reached.
export HTTPS_PROXY=http://127.0.0.1:9 HTTP_PROXY=http://127.0.0.1:9
"$guise" daemon --listen 127.0.0.1:0 --plain --log warn 2>"$place/log" &
daemon=$!
address=
# Asked before it listens, `guise info` would start another one.
for _ in $(seq 600); do
    test ! -S "$GUISE_RUN/guise.sock" || break
    sleep 0.1
done
for _ in $(seq 600); do
    address=$("$guise" info -o json 2>/dev/null | sed -n 's/.*"listens": "\(.*\)".*/\1/p') || true
    test -z "$address" || break
    sleep 0.1
done
token=$("$guise" token create --grant '*=admin' fuzzer)

# Its own token stays, or it would lock itself out; streams end by themselves.
cat >"$place/schemathesis.toml" <<END
base-url = "http://$address"
headers = { Authorization = "Bearer $token" }
[[operations]]
include-name = "DELETE /v1/tokens/{name}"
enabled = false
[[operations]]
include-path = "/v1/events"
parameters = { follow = "false" }
[[operations]]
include-path = "/v1/changes"
parameters = { follow = "false" }
END
unset HTTPS_PROXY HTTP_PROXY
cd "$place"

# What it leaves out: streams that end when the client does, and waiting for what goes on.
fuzz() {
    "$tools/bin/schemathesis" run "http://$address/v1/openapi.json" \
        --max-examples "$examples" --request-timeout 30 \
        --exclude-path-regex '/follow$|/wait$' \
        --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method \
        "$@" || { tail -20 "$place/log"; exit 1; }
    kill -0 "$daemon"
    # It may have been given a quota.
    "$guise" project set default >/dev/null
}
fuzz
# Projects at random are hardly ever there: once more in one that is.
sed -i '2a parameters = { guise-project = "default" }' schemathesis.toml
fuzz

# Nor are names at random: once more with things that there are.
if test "$(id -u)" != 0 || ! test -x /bin/busybox; then
    echo "not run: requests about an instance: needs root and a static busybox"
    exit 0
fi
mkdir -p box/bin
cp /bin/busybox box/bin/busybox
ln -s busybox box/bin/sh
ln -s busybox box/bin/sleep
tar -C box -cf box.tar bin
"$guise" image --store "$GUISE_IMAGES" import -q box.tar box:1
for kind in volume network project; do
    "$guise" $kind create it >/dev/null
done
"$guise" token create --grant it=viewer it >/dev/null
"$guise" run --detach --name it --as container --restart always box:1 \
    sh -c 'trap exit TERM; while :; do sleep 1000 & wait; done'
cat >>schemathesis.toml <<END
[[operations]]
include-path-regex = "{name}"
parameters = { name = "it", guise-project = "default" }
[[operations]]
include-path-regex = "/(stop|restart)$"
parameters = { name = "it", guise-project = "default", seconds = 1 }
[[operations]]
include-name = "DELETE /v1/instances/{name}"
enabled = false
END
fuzz --exclude-path-regex '/follow$|/wait$|/rename$' --include-path-regex '{name}'
