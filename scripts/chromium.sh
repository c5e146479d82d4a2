#!/bin/sh
# Installs Debian's Chromium for the tests of web pages, and a font with Japanese characters for their
# pictures, with apt-get as root; otherwise prints what is missing. Tests that need it fail without it.
set -eu
missing=
command -v chromium > /dev/null || missing=chromium
# fontconfig comes with Chromium.
if ! command -v fc-list > /dev/null || [ -z "$(fc-list :lang=ja family)" ]; then
    missing="$missing fonts-noto-cjk"
fi
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    echo "installing" $missing
    apt-get update -qq
    # shellcheck disable=SC2086 # one word for each package
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing > /dev/null
else
    echo "missing: run \`sudo apt-get install" $missing"\`" >&2
fi
