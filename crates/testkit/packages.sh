#!/bin/sh
# Installs the packages of packages.list whose files are missing. Does nothing, and
# needs neither root nor the network, when all are there.
set -eu
list=$(dirname "$0")/packages.list

missing=
while read -r file package _; do
	case $file in '' | '#'*) continue ;; esac
	[ -e "$file" ] || missing="$missing $package"
done <"$list"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
	as_root=
elif command -v sudo >/dev/null; then
	as_root=sudo
else
	echo "These packages are missing and need root to install:$missing" | fold -s >&2
	exit 1
fi
echo "Installing$missing" | fold -s
export DEBIAN_FRONTEND=noninteractive
# What it says is worth reading where it fails.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# shellcheck disable=SC2086 # the list is words, and no prefix is no word
if ! {
	$as_root apt-get --quiet=2 update &&
		$as_root apt-get --quiet=2 --no-install-recommends --yes install $missing
} >"$log" 2>&1; then
	cat "$log" >&2
	exit 1
fi
