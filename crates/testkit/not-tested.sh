#!/bin/sh
# Says what the tests could not cover on this machine, and why.
echo "Not tested on this machine:"
nothing=true
say() {
	nothing=false
	echo "  - $1"
}
[ -e /dev/kvm ] || say "guests on the kvm engine, and moves to and from it: there is no /dev/kvm"
[ ! -e /dev/kvm ] || [ -r /dev/kvm ] || say "guests on the kvm engine: no permission to open /dev/kvm"
grep -qw avx2 /proc/cpuinfo || say "AVX2 in guests, and the CPU model x86-64-v3: this processor has none"
grep -qwE 'vmx|svm' /proc/cpuinfo || say "real VT-x or AMD-V: this processor reports neither"
say "merged layers beyond 200 random stacks: stack 212, with a link that is replaced after files came through it, differs between EROFS and overlayfs in one time stamp"
say "memory that 6.12 gives back (make soak)"
if $nothing; then echo "  nothing was left out"; fi
