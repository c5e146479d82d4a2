#!/bin/sh
# Installs third-party clients of ComfyUI for tests/acceptance and prints their folder. Their
# dependencies conflict with ours, so they get a separate environment, which later runs reuse. One of
# them needs Node.js, which is installed with apt-get as root; otherwise prints that it is missing.
set -eu
cd "$(dirname "$0")/.."
lists=tests/acceptance/clients
python=${PYTHON:-python3}
version=$({ "$python" -c 'import sys; print(sys.version_info[:2])'; cat "$lists"/*.txt; } |
    sha256sum | cut -c 1-16)
place=${XDG_CACHE_HOME:-$HOME/.cache}/moyin-clients
folder=$place/$version
mkdir -p "$place"
# The tests call this script, too, so only one run at a time may install.
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
    # Node.js has its own list of certificate authorities; make npm trust this machine's, as pip does.
    authorities=/etc/ssl/certs/ca-certificates.crt
    if [ -z "${NODE_EXTRA_CA_CERTS:-}" ] && [ -r "$authorities" ]; then
        export NODE_EXTRA_CA_CERTS="$authorities"
    fi
    # shellcheck disable=SC2046  # each word is one package
    npm install --prefix "$folder/node" --silent --no-audit --no-fund --ignore-scripts \
        $(cat "$lists/node.txt") > /dev/null
    touch "$folder/complete"
fi
echo "$folder"
