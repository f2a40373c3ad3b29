#!/usr/bin/env bash
# Checks that the named tools are there and new enough, and says what to install where they are not.
# Usage: xtask/prerequisites.sh [--install] TOOL...   (rust, go, gcc, c++, curl, python)
# With --install, what Debian packages is installed with apt-get first (as root only).
# Called by the Makefile before anything can be compiled, hence not a part of xtask itself.
set -uo pipefail
cd "$(dirname "$0")/.."

missing=0
complain() {
    printf 'missing: %s\n         %s\n' "$1" "$2" >&2
    missing=1
}

# at_least WANTED FOUND: compares dotted versions.
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n1)" = "$1" ]; }

check_rust() {
    local wanted tool found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
    for tool in cargo rustc; do
        found=$("$tool" --version 2>/dev/null | cut -d' ' -f2)
        [ -n "$found" ] && at_least "$wanted" "$found" && continue
        complain "$tool >= $wanted (found: ${found:-none})" "install it from https://rustup.rs, then: rustup update stable"
    done
}

check_go() {
    local wanted found
    wanted=$(sed -n 's/^minimum = "\(.*\)"$/\1/p' xtask/upstream/versions.toml)
    found=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null)
    [ -n "$found" ] && at_least "$wanted" "${found#go}" && return
    complain "go >= $wanted (found: ${found:-none}); it compiles the Kubernetes binaries" \
        "install it from https://go.dev/dl/, or name a directory that has them: make run BIN_DIR=..."
}

check_gcc() {
    command -v gcc >/dev/null && return
    complain "gcc; it compiles SQLite and the TLS library" "apt-get install gcc libc6-dev"
}

check_cxx() {
    command -v c++ >/dev/null && return
    complain "c++; it compiles the fuzzer" "apt-get install g++"
}

check_curl() {
    command -v curl >/dev/null && return
    complain "curl; it fetches release binaries" "apt-get install curl"
}

# A virtual environment needs ensurepip, which Debian has in a package of its own.
has_python() { python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

check_python() {
    has_python && return
    complain "python3 >= 3.10 with venv; tests run Python's etcd clients" "apt-get install python3-venv"
}

install_with_apt() {
    local tool packages=()
    for tool in "$@"; do
        case $tool in
            gcc | curl) command -v "$tool" >/dev/null || packages+=("$tool") ;;
            python) has_python || packages+=(python3-venv) ;;
            c++) command -v c++ >/dev/null || packages+=(g++) ;;
        esac
    done
    [ ${#packages[@]} -eq 0 ] || [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null && return
    case " ${packages[*]} " in *" gcc "*) packages+=(libc6-dev) ;; esac
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update && apt-get -qq install -y --no-install-recommends ca-certificates "${packages[@]}"
}

if [ "${1:-}" = --install ]; then
    shift
    install_with_apt "$@" </dev/null
fi
for tool in "$@"; do
    "check_${tool//+/x}"
done
exit "$missing"
