#!/bin/sh
# Stands in for HAProxy. Its statistics and metrics listen on every interface, and Ray Serve has no
# switch for it: this moves both to loopback in the file that Serve wrote (it comes as -db -f FILE).
# MOYIN_HAPROXY is the program itself.
if [ "$2" = -f ]; then
    ports="${RAY_SERVE_HAPROXY_STATS_PORT:-8404}|${RAY_SERVE_HAPROXY_METRICS_PORT:-9101}"
    sed -i -E "s/bind [*]?:($ports)\$/bind 127.0.0.1:\\1/" "$3"
fi
exec "$MOYIN_HAPROXY" "$@"
