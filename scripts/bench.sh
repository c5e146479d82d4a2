#!/bin/sh
# Installs nginx and wrk for `make bench` with apt-get as root; otherwise prints what is missing. The
# benchmark skips measurements whose program is missing, and says so.
set -eu
missing=
command -v wrk > /dev/null || missing=wrk
# Debian installs nginx in /usr/sbin, which only root's PATH contains.
PATH="$PATH:/usr/sbin" command -v nginx > /dev/null || missing="$missing nginx-light"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    echo "installing $missing"
    apt-get update -qq
    # In runlevel 1 the package does not start its service, which would occupy port 80.
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        $missing > /dev/null
else
    echo "make bench needs: sudo apt-get install $missing" >&2
fi
