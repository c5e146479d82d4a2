#!/bin/sh
# make_venv.sh PYTHON FOLDER: creates a virtual environment, or prints what is missing.
set -eu
python=$1
folder=$2

command -v "$python" > /dev/null || {
    echo "error: $python was not found: install Python 3.11 or newer, or set PYTHON=…" >&2
    exit 1
}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $("$python" --version) is too old: install 3.11 or newer, or set PYTHON=…" >&2
    exit 1
}
# On Debian, `venv` needs a separate package.
if ! "$python" -c 'import ensurepip, venv' 2> /dev/null; then
    package=$("$python" -c 'import sys; print("python3.%d-venv" % sys.version_info[1])')
    if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
        echo "installing $package"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "$package" > /dev/null
    else
        echo "error: $python lacks venv: run \`sudo apt-get install $package\`" >&2
        exit 1
    fi
fi
"$python" -m venv "$folder"
