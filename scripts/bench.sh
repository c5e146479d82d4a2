#!/bin/sh
# nginx and wrk for `make bench`: installed where that is possible, else one line about what is
# missing; the bench says so as well, and leaves out what it can't measure.
set -eu
missing=
command -v wrk > /dev/null || missing=wrk
# Debian keeps it where only root's PATH leads.
PATH="$PATH:/usr/sbin" command -v nginx > /dev/null || missing="$missing nginx-light"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    echo "installing $missing"
    apt-get update -qq
    # In that runlevel no service is started: nginx would take port 80.
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        $missing > /dev/null
else
    echo "make bench needs: sudo apt-get install $missing" >&2
fi
