#!/bin/sh
# Chromium for the tests of the pages: Debian's, installed where that is possible, else one line
# about what is missing; the tests that need it say so as well, and fail.
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
