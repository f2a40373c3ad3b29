#!/usr/bin/env bash
# Builds every fuzz target and runs each for SECONDS: fuzz/run.sh [SECONDS] [TARGET...]
#
# libFuzzer on the stable compiler: the coverage instrumentation is a pass of LLVM that stable rustc can name; only the
# address sanitizer would need a nightly one. What is found goes to fuzz/artifacts/, with the command that repeats it;
# once mended, the file moves to fuzz/regressions/TARGET/ and is run first from then on.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:-20}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(requests database snapshot)

command -v c++ >/dev/null || {
    echo "missing: c++; libFuzzer is written in it: apt-get install g++" >&2
    exit 1
}

host=$(rustc -vV | sed -n 's/^host: //p')
target_dir=${CARGO_TARGET_DIR:-$PWD/../target}/fuzz
corpus=$target_dir/corpus
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"

cargo build --locked --release --target "$host" --target-dir "$target_dir"
bin=$target_dir/$host/release

log=$(mktemp)
trap 'rm -f "$log"' EXIT
for target in "${targets[@]}"; do
    mkdir -p "artifacts/$target" "regressions/$target" "$corpus/$target"
    FUZZ_SEEDS="$corpus/$target" "$bin/$target" "$corpus/$target" "regressions/$target" -max_total_time="$seconds" \
        -timeout=10 -rss_limit_mb=1024 -max_len=65536 -artifact_prefix="artifacts/$target/" -print_final_stats=1 \
        >"$log" 2>&1 || {
        tail -n 60 "$log" >&2
        echo "fuzz: $target: to repeat it: $bin/$target FILE, with the file named above (below fuzz/)" >&2
        exit 1
    }
    echo "fuzz: $target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") runs, nothing found"
done
