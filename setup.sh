#!/bin/bash
# What the Makefile's targets need done to this machine or this folder, a step a word: ./setup.sh STEP
# Every step says in a line what it does and fails with one line that says what to do.
set -euo pipefail
cd "$(dirname "$0")"

say() { echo "stackfs: $*"; }
fail() { echo "stackfs: $*" >&2; exit 1; }

# What is needed to build, mount, test and measure, as Debian 12 names it.
PACKAGES=(gcc libc6-dev pkg-config python3 python3-dev python3-venv libfuse3-dev fuse3 libssl-dev
          fio rsync sqlite3 attr acl git util-linux)

# What tests of other programs on a drive use besides, if it is there: those tests are skipped without it.
TEST_PACKAGES=(postgresql)

# Steps that write in this folder wait for each other; two makes may run at once.
mkdir -p build
one_at_a_time() { exec 9>build/.lock; flock 9; }

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# Sets the caller's `missing` to those of its arguments that are not installed.
find_missing() {
    local package
    missing=()
    for package; do installed "$package" || missing+=("$package"); done
}

packages() {
    if command -v dpkg-query >/dev/null; then
        local missing
        find_missing "${PACKAGES[@]}"
        if [ ${#missing[@]} -gt 0 ]; then
            if [ "$(id -u)" != 0 ]; then
                fail "packages are missing; as root: apt-get install -y --no-install-recommends ${missing[*]}"
            fi
            say "installing Debian packages: ${missing[*]}"
            export DEBIAN_FRONTEND=noninteractive
            apt-get update -qq || fail "apt-get update failed: is the network up?"
            apt-get install -y -qq --no-install-recommends "${missing[@]}" >build/packages.log 2>&1 ||
                fail "apt-get install failed, see build/packages.log: ${missing[*]}"
        fi
    else
        say "not a Debian system: gcc, pkg-config, libfuse3, OpenSSL and Python 3.11 with headers must be here already"
    fi
    touch build/.packages
}

# For the long tests. Where they cannot be installed the tests that need them are skipped, and say so.
test_packages() {
    command -v dpkg-query >/dev/null || return 0
    local missing
    find_missing "${TEST_PACKAGES[@]}"
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        say "some tests are skipped without: ${missing[*]}"
        return 0
    fi
    say "installing Debian packages for the tests: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >build/test-packages.log 2>&1 ||
        say "not installed, see build/test-packages.log: the tests that need them are skipped"
}

# The system's own Python first: other users can run it too, which a pyenv under /root does not allow.
suitable() {
    "$1" - 2>/dev/null <<'PYTHON'
import sys, sysconfig, pathlib, venv, ensurepip
sys.exit(sys.version_info < (3, 11) or not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())
PYTHON
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        suitable "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.11 or later with its headers and venv"
        echo "$PYTHON"
        return
    fi
    for candidate in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null && suitable "$candidate"; then echo "$candidate"; return; fi
    done
    fail "no Python 3.11 or later with its headers and venv; name one with make PYTHON=/path/to/python3"
}

venv() {
    one_at_a_time
    local python
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        python=$(find_python)
        say "making .venv with $("$python" --version)"
        rm -rf .venv
        "$python" -m venv .venv
    fi
    say "installing what stackfs needs into .venv"
    quiet_pip .venv install 'setuptools>=77' 'Cython>=3.1' wheel
    STACKFS_COMPILE=0 quiet_pip .venv install --editable '.[dev]'
    touch .venv/.ready
}

# pip's own words only when it fails.
quiet_pip() {
    local where=$1 log
    shift
    log=build/pip.log
    "$where/bin/python" -m pip --quiet --disable-pip-version-check --no-input "$@" >"$log" 2>&1 || {
        grep -v '^WARNING' "$log" | tail -n 30 >&2
        fail "pip failed: $*"
    }
}

core() {
    one_at_a_time
    local log=build/core.log module
    say "compiling the core"
    touch build/.core.begun
    for module in $(find cext filters benchmarks -name '*.so'); do
        [ -e "${module%.cpython*}.pyx" ] || rm "$module"
    done
    if ! .venv/bin/python setup.py --quiet build_ext --inplace >"$log" 2>&1; then
        cat "$log" >&2
        fail "the core did not compile"
    fi
    cat "$log"
    touch --reference=build/.core.begun build/.core          # a source saved meanwhile is newer than this
}

# The core once more, compiled with gcc's sanitizers into build/$SANITIZE, and the tests that drive it without a mount.
sanitize() {
    local kind=${SANITIZE:-address} library into options report failed=
    case $kind in
        address) library=libasan.so; options=ASAN_OPTIONS=detect_leaks=0:handle_segv=0:allocator_may_return_null=1 ;;
        thread) library=libtsan.so
            options=TSAN_OPTIONS=report_signal_unsafe=0:exitcode=0:suppressions=$PWD/build/thread/suppressions ;;
        *) fail "SANITIZE=$kind is none of address and thread" ;;
    esac
    library=$(gcc -print-file-name=$library)
    [ -e "$library" ] || fail "gcc's run-time library of the $kind sanitizer is missing: $library"
    into=build/$kind
    say "compiling the core with the $kind sanitizer into $into"
    mkdir -p "$into"
    (
        one_at_a_time
        STACKFS_SANITIZE=$kind .venv/bin/python setup.py --quiet build --build-base "$into" --build-lib "$into/lib" \
            --build-temp "$into/temp" >"$into/build.log" 2>&1
    ) || { cat "$into/build.log" >&2; fail "the core did not compile"; }
    say "tests under the $kind sanitizer"
    rm -f "$into"/report.*
    # The C library hands a thread's variables to the next thread unseen by the sanitizer.
    echo "race:_dl_deallocate_tls" >"$into/suppressions"
    # Not `python -m pytest`: the folder itself must not come before $into/lib. Without address randomisation:
    # ThreadSanitizer does not start on every layout of the address space.
    setarch -R env LD_PRELOAD="$library $(gcc -print-file-name=libubsan.so)" PYTHONMALLOC=malloc PYTHONPATH="$into/lib" \
        "$options:log_path=$PWD/$into/report" "UBSAN_OPTIONS=print_stacktrace=1:log_path=$PWD/$into/report" \
        STACKFS_STRESS_SECONDS="${STACKFS_STRESS_SECONDS:-5}" \
        .venv/bin/pytest -q -p no:cacheprovider -m "not long" tests/test_core_safety.py tests/test_torn_wire.py \
        tests/test_stress.py tests/test_device.py tests/test_contexts.py tests/test_contexts_filters.py tests/test_names.py \
        || failed="the tests fail under the $kind sanitizer"
    for report in "$into"/report.*; do
        [ -e "$report" ] || continue
        head -n 100 "$report" >&2
        failed="the $kind sanitizer reports, see $report"
    done
    [ -z "$failed" ] || fail "$failed"
    say "the $kind sanitizer finds nothing"
}

docs() {
    one_at_a_time
    say "building the documentation"
    STACKFS_COMPILE=0 quiet_pip .venv install --editable '.[docs]'
    .venv/bin/sphinx-build -q -W --keep-going docs docs/_build || fail "the documentation has errors, see above"
    say "docs/_build/index.html"
}

# Only the charts need it: without it the benchmarks run all the same.
bench() {
    one_at_a_time
    say "installing what the charts of the benchmarks need"
    (STACKFS_COMPILE=0 quiet_pip .venv install --editable '.[bench]') ||
        say "the benchmarks go on without charts"
    touch .venv/.bench
}

# A virtual environment of its own under PREFIX/lib/stackfs; the commands are links into it.
install() {
    umask 022                                # what others could write would not be loaded by root
    one_at_a_time
    local home=$PREFIX/lib/stackfs place=$DESTDIR$PREFIX/lib/stackfs sbin=$DESTDIR/sbin file
    local writes
    for writes in "$DESTDIR$PREFIX" "$sbin"; do
        mkdir -p "$writes" 2>/dev/null && [ -w "$writes" ] || fail "cannot write $writes: run make install as root, or give DESTDIR="
    done
    say "building the wheel"
    rm -rf build/wheel
    .venv/bin/python -m build --wheel --no-isolation --outdir build/wheel . >build/wheel.log 2>&1 || {
        tail -n 30 build/wheel.log >&2
        fail "the wheel could not be built"
    }
    say "installing into $place"
    rm -rf "$place"
    "$(.venv/bin/python -c 'import sys; print(sys._base_executable)')" -m venv "$place"
    quiet_pip "$place" install --no-compile build/wheel/*.whl
    if [ -n "$DESTDIR" ]; then              # the files will live in $home
        grep -rlIZ -F "$place" "$place/bin" "$place/pyvenv.cfg" | xargs -0r sed -i "s|$place|$home|g"
    fi
    mkdir -p "$DESTDIR$PREFIX/bin"
    ln -sfn "$home/bin/stackfs" "$DESTDIR$PREFIX/bin/stackfs"
    ln -sfn "$home/bin/fltmc" "$DESTDIR$PREFIX/bin/fltmc"
    file=$sbin/mount.fuse.stackfs
    sed "s|/usr/local/bin/stackfs|$PREFIX/bin/stackfs|" docs/mount.fuse.stackfs >"$file"
    chmod 755 "$file"
    say "installed: $DESTDIR$PREFIX/bin/stackfs, $DESTDIR$PREFIX/bin/fltmc, $file"
}

uninstall() {
    say "removing $DESTDIR$PREFIX/lib/stackfs, its two commands and $DESTDIR/sbin/mount.fuse.stackfs"
    rm -rf "$DESTDIR$PREFIX/lib/stackfs" || fail "could not remove it: run make uninstall as root"
    rm -f "$DESTDIR$PREFIX/bin/stackfs" "$DESTDIR$PREFIX/bin/fltmc" "$DESTDIR/sbin/mount.fuse.stackfs"
}

clean() {
    one_at_a_time
    say "removing build/, .venv/ and what was compiled"
    find cext filters benchmarks -name '*.so' -delete
    find . -path ./.git -prune -o -name __pycache__ -type d -print0 | xargs -0r rm -rf
    rm -f stackfs/cext stackfs/filters stackfs/mountpoints stackfs/benchmarks
    rm -rf build dist .venv docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
}

case "${1:-}" in
    packages | test_packages | venv | core | sanitize | bench | docs | install | uninstall | clean) "$1" ;;
    *) fail "setup.sh packages|test_packages|venv|core|sanitize|bench|docs|install|uninstall|clean" ;;
esac
