#!/bin/sh
# Does the outbox keep its promises over a power cut? One command: builds, records it at work on a recorded disk, cuts the
# power CUTS times in each of six modes, then a second generation: GENERATIONS recovered images continue and
# are cut again, their recovery included. Root, /dev/fuse and loop devices are needed.
#   tests/powercut/run.sh [CUTS] [GENERATIONS] [RUNS-FOLDER]
# With DAEMON=yes it is the real daemon, fed over its control socket and MLLP, instead of the library.
# POWERCUT names a rig that is built already, PROGRAMS a folder with the programs. Exit status 0: every cut was survived.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
what=outbox
[ "${DAEMON:-no}" = no ] || what=daemon
cuts=${1:-200} generations=${2:-12} runs=${3:-${TMPDIR:-/tmp}/powercut-$what}
seconds=${SECONDS_TO_RECORD:-8}
if [ -z "${POWERCUT:-}" ]; then
    (cd "$here" && ./setup.sh)
    POWERCUT=$here/target/release/powercut
fi
if [ -z "${PROGRAMS:-}" ]; then
    (cd "$project" && cargo build --quiet --bin practice-gateway --example powercut-$what)
    PROGRAMS=$(mktemp -d) # a build while this runs must not change the checker
    trap 'rm -r "$PROGRAMS"' EXIT
    built=${CARGO_TARGET_DIR:-$project/target}/debug
    cp "$built/practice-gateway" "$built/examples/powercut-$what" "$PROGRAMS/"
fi
run="$PROGRAMS/powercut-$what run" check="$PROGRAMS/powercut-$what check"
[ $what = outbox ] || { run="$run $PROGRAMS/practice-gateway"; check="$check $PROGRAMS/practice-gateway"; }

mkdir -p "$runs"
bad=0 total=0
check_images() { # run folder, mode, cuts, label
    "$POWERCUT" check --run "$1" --mode "$2" --cuts "$3" --checker "$check {dir} {acked-file}" \
        >"$1/out-$2.txt" 2>&1 || { bad=$((bad + 1)); grep -v '^TOTAL' "$1/out-$2.txt" | tail -n 8; }
    total=$((total + $3))
    echo "$4 $2: $(tail -n 1 "$1/out-$2.txt")"
}

"$POWERCUT" record --out "$runs/first" --workload "$run {dir} {acks} $seconds 1"
for mode in none prefix subset torn4k torn512 plp; do
    check_images "$runs/first" $mode "$cuts" "first generation,"
done

n=0
while [ "$n" -lt "$generations" ]; do
    case $((n % 4)) in 0) mode=subset ;; 1) mode=torn4k ;; 2) mode=none ;; *) mode=prefix ;; esac
    second=$runs/second-$n
    mkdir -p "$second"
    "$POWERCUT" image --run "$runs/first" --only $((1000 + n)) --mode $mode --out "$second/start.img" \
        --events "$second/start.txt" >/dev/null
    if "$POWERCUT" record --out "$second" --base "$second/start.img" --prior "$second/start.txt" \
        --workload "$run {dir} {acks} 2 $((n + 2))" >"$second/record.txt" 2>&1; then
        check_images "$second" $mode $((cuts / 5 + 1)) "second generation $n,"
    else
        echo "second generation $n: RESTART FAILED: $(tail -n 3 "$second/record.txt" | tr '\n' ' ')"
        bad=$((bad + 1))
    fi
    rm -f "$second"/*.img "$second/log.bin"
    n=$((n + 1))
done
echo "$total cuts of the $what, $bad runs with losses"
[ "$bad" -eq 0 ]
