#!/bin/sh
# Make .venv hold what requirements/lock.txt says, learn2learn and this checkout: `sh requirements/setup.sh STAMP`.
# Every step may be repeated, and the stamp is written last: after an interruption, run it again.
set -eu
cd "$(dirname "$0")/.."
stamp=$1
venv=.venv
pip="$venv/bin/python -m pip --disable-pip-version-check --no-input"
export PIP_REQUIRE_VIRTUALENV=1 # half a .venv can be an alias of the interpreter it came from: never install there

say() { printf '%s\n' "$*" >&2; }

version() { # "3.11" if $1 is a CPython that the lock covers
    "$1" -c 'import sys; v = sys.version_info[:2]; sys.implementation.name == "cpython" and v in ((3, 11), (3, 12)) \
        and print("%d.%d" % v)' 2>/dev/null || true
}

find_python() { # the first candidate that the lock covers
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        if [ -n "$(version "$candidate")" ]; then echo "$candidate"; return; fi
    done
    say "setup: no CPython 3.11 or 3.12 found (tried: ${PYTHON:-python3.11 python3.12 python3}); install one or set PYTHON=/path/to/python."
    exit 1
}

have=$(version "$venv/bin/python")
"$venv/bin/python" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)' 2>/dev/null || have=
if [ -n "$have" ] && [ -n "${PYTHON:-}" ] && [ "$(version "$PYTHON")" != "$have" ]; then
    say "setup: $venv holds Python $have and PYTHON=$PYTHON is another: rm -rf $venv first."
    exit 1
fi
if [ -z "$have" ] || ! $pip --version >/dev/null 2>&1; then
    python=$(find_python)
    say "Creating $venv with $python ($("$python" --version))"
    "$python" -m venv --clear "$venv"
fi
rm -f "$venv"/.stamp-*

say "Installing into $venv: some two minutes the first time, more where torch brings its CUDA packages"
# pip first: the options in requirements/learn2learn.txt need a recent one.
$pip install --quiet "$(grep '^pip==' requirements/lock.txt)"
$pip install --quiet -r requirements/lock.txt
$pip install --quiet --no-deps --build-constraint requirements/learn2learn-build.txt -r requirements/learn2learn.txt
$pip install --quiet --no-deps --no-build-isolation --editable .
"$venv/bin/python" --version > "$stamp"
say "Ready: $(cat "$stamp")"
