#!/bin/sh
# make_venv.sh PYTHON FOLDER: a virtual environment, or one line about what is missing.
set -eu
python=$1
folder=$2

command -v "$python" > /dev/null || {
    echo "error: there is no $python: install Python 3.11 or newer, or name one with PYTHON=…" >&2
    exit 1
}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $("$python" --version) is too old: Moyin needs 3.11 or newer (PYTHON=…)" >&2
    exit 1
}
# Debian keeps what `venv` needs in a package of its own.
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
