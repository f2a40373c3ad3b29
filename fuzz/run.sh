#!/usr/bin/env bash
# Builds every fuzz target and runs each for SECONDS, as many at a time as there are cores:
#
#   fuzz/run.sh [--same] [SECONDS] [TARGET...]
#
# --same: as the last time, for CI: a fixed seed, and no inputs that earlier runs have found.
#
# What is found is kept in the target directory, with the command that repeats it; once mended, the file moves to
# fuzz/regressions/TARGET/ and is run first from then on.
set -euo pipefail
cd "$(dirname "$0")"

same=
if [ "${1:-}" = --same ]; then
    same=1
    shift
fi
export SECONDS_EACH=${1:-20}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(requests database snapshot takeover gateway image)

target_dir=${CARGO_TARGET_DIR:-$PWD/../target}
# Of the whole workspace, so that the dependencies are those that the tests have already: only our crates are compiled
# again. The wrapper is named, not its path: cargo would keep what it compiles for every clone apart.
PATH="$PWD:$PATH" RUSTC_WORKSPACE_WRAPPER=instrumented CARGO_INCREMENTAL=0 \
    cargo build --quiet --locked --workspace "${targets[@]/#/--bin=}"
export BIN=$target_dir/debug ARTIFACTS=$target_dir/fuzz/artifacts CORPUS=$target_dir/fuzz/corpus SEED=0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ -n "$same" ]; then
    CORPUS=$scratch SEED=1
fi

fuzz() {
    local target=$1 inputs=("$CORPUS/$1") log
    log=$(mktemp)
    mkdir -p "$ARTIFACTS/$target" "$CORPUS/$target"
    [ ! -d "regressions/$target" ] || inputs+=("regressions/$target")
    FUZZ_SEEDS="$CORPUS/$target" "$BIN/$target" "${inputs[@]}" -max_total_time="$SECONDS_EACH" -seed="$SEED" \
        -timeout=60 -rss_limit_mb=1024 -max_len=65536 -artifact_prefix="$ARTIFACTS/$target/" -print_final_stats=1 \
        >"$log" 2>&1 || {
        tail -n 60 "$log"
        echo "fuzz: $target: FOUND something; to repeat it: $BIN/$target FILE, with the file named above"
        rm -f "$log"
        return 1
    }
    echo "fuzz: $target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") runs, nothing found"
    rm -f "$log"
}
export -f fuzz
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -c 'fuzz {}'
