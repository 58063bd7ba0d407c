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
    echo "NOT RUN: fuzz targets, there is no nightly compiler (tests/fuzz_corpus.rs runs what they have found)"
    exit 0
fi
command -v cargo-fuzz >/dev/null 2>&1 || cargo install --locked cargo-fuzz
cargo +nightly fuzz build --fuzz-dir .
[ $# -gt 0 ] || set -- mllp msh fhir record receipt command configuration
for target; do
    # What is found on the way stays out of the tree; the kept inputs begin the run.
    grown="target/corpus/$target"
    mkdir -p "$grown"
    cargo +nightly fuzz run --fuzz-dir . "$target" "$grown" "corpus/$target" -- \
        -max_total_time="$seconds" -rss_limit_mb=512 -max_len=65536 -timeout=10 -print_final_stats=1 -verbosity=0
done
