#!/usr/bin/env bash
# Walks a newcomer's path: clones this tree, runs `make demo` there, and follows docs/studio.md in a browser.
set -euo pipefail

folder=$(mktemp -d)
tree=$folder/moyin
# The supervisor ends all processes of the stack.
end() {
    [ ! -x "$tree/.venv/bin/moyin" ] || (cd "$tree" && .venv/bin/moyin down) || true
    rm -rf "$folder"
}
trap end EXIT

unset PYTHONPATH
# Beside a stack that may be running, whose data folder, database and settings a newcomer does not have.
port=${MOYIN_PORT_BASE:-21000}
while read -r name; do unset "$name"; done < <(compgen -e MOYIN_)
export MOYIN_PORT_BASE=$port
git clone --quiet "$(dirname "$0")/.." "$tree"
cd "$tree"
make demo
make .venv/.installed-dev chromium
MOYIN_TESTED_DATA=$tree/.moyin .venv/bin/python -m pytest tests/acceptance/console/test_newcomer.py
