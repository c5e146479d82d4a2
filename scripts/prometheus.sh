#!/bin/sh
# Installs Prometheus for the test of deploy/prometheus with apt-get as root; otherwise prints that it
# is missing. The test is skipped without it.
set -eu
command -v prometheus > /dev/null && command -v promtool > /dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    echo "installing prometheus"
    apt-get update -qq
    # In runlevel 1 the package does not start its service, which would occupy port 9090.
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        prometheus > /dev/null
else
    echo "prometheus is missing: run \`sudo apt-get install prometheus\`" >&2
fi
