# What the benchmarks of disks share: two programs in turns, several rounds, the order
# changing with each, so that a machine which becomes slower or faster meanwhile is as
# unfair to the one as to the other. Quotients are taken within a round.

# The middle one of the numbers in a file.
median() { sort -g "$1" | awk '{ all[NR] = $1 } END { print (all[int((NR + 1) / 2)] + all[int(NR / 2) + 1]) / 2 }'; }

# The quotient of two files' numbers, line by line.
quotients() { paste "$1" "$2" | awk '{ print $1 / $2 }'; }

# Runs `$2` and `$3`, each given a file to which it adds "figure CPU", in `$1` rounds, and
# leaves in the folder `$4` the columns, the medians, and those of the quotients.
in_turns() {
    local rounds=$1 first=$2 second=$3 to=$4 round column
    mkdir -p "$to"
    rm -f "$to"/*
    for round in $(seq "$rounds"); do
        if (( round % 2 )); then
            $first "$to/first"; $second "$to/second"
        else
            $second "$to/second"; $first "$to/first"
        fi
    done
    for column in 1 2; do
        cut -d' ' -f$column "$to/first" > "$to/first.$column"
        cut -d' ' -f$column "$to/second" > "$to/second.$column"
        quotients "$to/first.$column" "$to/second.$column" > "$to/quotient.$column"
    done
}

# The machine, and how busy it is.
machine() {
    echo "$(qemu-img --version | head -1); $(nproc) processors, Linux $(uname -r | cut -d- -f1)," \
        "$(stat -f -c %T .), load average $(cut -d' ' -f1 /proc/loadavg)"
}
