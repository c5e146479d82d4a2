#!/bin/sh
# Installs Debian's Chromium for the tests of web pages with apt-get as root; otherwise prints that it
# is missing. Tests that need it fail without it.
set -eu
command -v chromium > /dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    echo "installing chromium"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        chromium > /dev/null
else
    echo "chromium is missing: run \`sudo apt-get install chromium\`" >&2
fi
