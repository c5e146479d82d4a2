#!/bin/sh
# Clients of ComfyUI that others wrote, for tests/acceptance. What they need and what Moyin needs
# can't be had together, so they get an environment of their own, kept from run to run. Prints its
# folder. Needs Node.js for one of them: installed where that is possible, else said in one line.
set -eu
cd "$(dirname "$0")/.."
lists=tests/acceptance/clients
python=${PYTHON:-python3}
version=$({ "$python" -c 'import sys; print(sys.version_info[:2])'; cat "$lists"/*.txt; } |
    sha256sum | cut -c 1-16)
place=${XDG_CACHE_HOME:-$HOME/.cache}/moyin-clients
folder=$place/$version
mkdir -p "$place"
# One at a time: the tests ask as well.
exec 9> "$place/lock"
flock 9
if [ ! -e "$folder/complete" ]; then
    echo "installing clients of ComfyUI" >&2
    rm -rf "$folder"
    "$python" -m venv "$folder"
    pip() { "$folder/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
    pip install --no-deps -r "$lists/python.txt"
    pip install --no-deps --target "$folder/frontend" -r "$lists/frontend.txt"
    if ! command -v npm > /dev/null; then
        if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
            apt-get update -qq
            DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
                nodejs npm > /dev/null
        else
            echo "Node.js is missing: run \`sudo apt-get install nodejs npm\`" >&2
            exit 1
        fi
    fi
    # Node.js brings its own list of authorities; pip trusts those of this machine, and so shall npm.
    authorities=/etc/ssl/certs/ca-certificates.crt
    if [ -z "${NODE_EXTRA_CA_CERTS:-}" ] && [ -r "$authorities" ]; then
        export NODE_EXTRA_CA_CERTS="$authorities"
    fi
    # shellcheck disable=SC2046  # one word each
    npm install --prefix "$folder/node" --silent --no-audit --no-fund --ignore-scripts \
        $(cat "$lists/node.txt") > /dev/null
    touch "$folder/complete"
fi
echo "$folder"
