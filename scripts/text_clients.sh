#!/bin/sh
# Installs third-party clients of text for tests/acceptance and prints their folder. Their dependencies
# conflict with ours, so they get a separate environment, which later runs reuse. Some need Node.js 20;
# without it this script installs the others and the folder has no `node`.
set -eu
cd "$(dirname "$0")/.."
lists=tests/acceptance/text_clients
python=${PYTHON:-python3}
has_node=no
if command -v npm > /dev/null && node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)'; then
    has_node=yes
fi
version=$({ "$python" -c 'import sys; print(sys.version_info[:2])'; echo $has_node; cat "$lists"/*.txt; } |
    sha256sum | cut -c 1-16)
place=${XDG_CACHE_HOME:-$HOME/.cache}/moyin-text-clients
folder=$place/$version
mkdir -p "$place"
# The tests call this script, too, so only one run at a time may install.
exec 9> "$place/lock"
flock 9
# uv needs a quarter of pip's time, and is beside the Python of a clone.
install() {
    if "$python" -c 'import uv' 2> /dev/null; then
        "$python" -P moyin/system/packages.py "$@"
    else
        interpreter=$1
        shift
        "$interpreter" -m pip --disable-pip-version-check --quiet install "$@"
    fi
}
if [ ! -e "$folder/complete" ]; then
    echo "installing clients of text" >&2
    rm -rf "$folder"
    for list in python frameworks; do
        "$python" -m venv "$folder/$list"
        install "$folder/$list/bin/python" --no-deps -r "$lists/$list.txt"
    done
    # Node.js has its own list of certificate authorities; make npm trust this machine's, as pip does.
    authorities=/etc/ssl/certs/ca-certificates.crt
    if [ -z "${NODE_EXTRA_CA_CERTS:-}" ] && [ -r "$authorities" ]; then
        export NODE_EXTRA_CA_CERTS="$authorities"
    fi
    if [ $has_node = yes ]; then
        # shellcheck disable=SC2046  # each word is one package
        npm install --prefix "$folder/node" --silent --no-audit --no-fund --ignore-scripts \
            $(cat "$lists/node.txt") > /dev/null
    fi
    touch "$folder/complete"
fi
echo "$folder"
