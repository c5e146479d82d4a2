#!/bin/sh
# Runs the unit tests with each installed Python from 3.11 to 3.13, in environments beside `.venv`.
set -eu
cd "$(dirname "$0")/.."
failed=""
for version in 3.11 3.12 3.13; do
    if ! "python$version" -c '' 2> /dev/null; then
        echo "skipped: python$version is not installed"
        continue
    fi
    folder=.venv-$version
    [ -x "$folder/bin/python" ] || scripts/make_venv.sh "python$version" "$folder"
    "$folder/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps \
        -r requirements.lock -r requirements-dev.lock -e .
    echo "python$version"
    "$folder/bin/python" -m pytest -q -n 2 tests/unit || failed="$failed $version"
done
[ -z "$failed" ] || { echo "tests failed with Python$failed" >&2; exit 1; }
