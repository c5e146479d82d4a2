#!/bin/sh
# Installs RabbitMQ for the tests of the message intake with apt-get as root; otherwise prints that it
# is missing. Tests that need it fail without it.
set -eu
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] && exit 0
command -v rabbitmq-server > /dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    echo "installing rabbitmq-server"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        rabbitmq-server > /dev/null
else
    echo "rabbitmq-server is missing: run \`sudo apt-get install rabbitmq-server\`" >&2
fi
