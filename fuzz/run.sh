#!/bin/sh
# Runs every fuzz target for so many seconds (60), where a nightly compiler and cargo-fuzz are.
#
#   fuzz/run.sh [SECONDS [TARGET...]]
#
# What breaks is left in fuzz/artifacts/: shorten it (cargo +nightly fuzz tmin), put it into fuzz/corpus/TARGET/ and repair the code.
set -eu
cd "$(dirname "$0")"
seconds=${1:-60}
[ $# = 0 ] || shift
if ! rustup toolchain list 2>/dev/null | grep -q '^nightly'; then
    echo "NOT RUN: fuzz targets, there is no nightly compiler (tests/model/fuzz_corpus.rs runs what they have found)"
    exit 0
fi
command -v cargo-fuzz >/dev/null 2>&1 || cargo install --locked cargo-fuzz
# A lock file that has aged would be rewritten without a word.
cargo metadata --locked --format-version 1 --manifest-path Cargo.toml >/dev/null
cargo +nightly fuzz build --fuzz-dir .
[ $# -gt 0 ] || set -- mllp msh fhir record receipt command configuration
one() {
    # What is found on the way stays out of the tree; the kept inputs begin the run.
    grown="target/corpus/$1"
    mkdir -p "$grown" target/logs
    cargo +nightly fuzz run --fuzz-dir . "$1" "$grown" "corpus/$1" -- \
        -max_total_time="$seconds" -rss_limit_mb=1024 -max_len=65536 -timeout=10 -print_final_stats=1 -verbosity=0 \
        >"target/logs/$1" 2>&1
}
# Two at a time: each keeps one core.
failed=
while [ $# -gt 0 ]; do
    one "$1" &
    first=$!
    if [ $# -gt 1 ]; then one "$2" || failed="$failed $2"; fi
    wait $first || failed="$failed $1"
    for target in "$1" ${2:+"$2"}; do
        echo "$target: $(grep number_of_executed_units "target/logs/$target" || echo "no figures")"
    done
    shift
    [ $# = 0 ] || shift
done
for target in $failed; do
    echo "FAILED: $target"
    tail -n 60 "target/logs/$target"
done
[ -z "$failed" ]
