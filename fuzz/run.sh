#!/usr/bin/env bash
# Builds every fuzz target and runs each for SECONDS, as many at a time as there are cores:
#
#   fuzz/run.sh [--same] [SECONDS] [TARGET...]
#
# --same: as the last time, for CI: a fixed seed, and no inputs that earlier runs have found.
#
# libFuzzer on the stable compiler: the coverage instrumentation is a pass of LLVM that stable rustc can name; only the
# address sanitizer would need a nightly one. What is found is kept beside the programs, with the command that repeats it;
# once mended, the file moves to fuzz/regressions/TARGET/ and is run first from then on.
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

host=$(rustc -vV | sed -n 's/^host: //p')
target_dir=${CARGO_TARGET_DIR:-$PWD/../target}/fuzz
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"

cargo build --quiet --locked --release --target "$host" --target-dir "$target_dir"
export BIN=$target_dir/$host/release ARTIFACTS=$target_dir/artifacts CORPUS=$target_dir/corpus SEED=0
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
