#!/bin/sh
# RabbitMQ for the tests of the message intake: installed where that is possible, else one line
# about what is missing; the tests that need it say so as well, and fail.
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
