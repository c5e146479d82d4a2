#!/bin/sh
# Stands in for HAProxy, and mends the file that Serve wrote (it comes as -db -f FILE) where Serve
# has no switch:
# - its statistics and metrics listen on every interface: both move to loopback;
# - a client may take for ever over its request's head: it gets twenty seconds;
# - splicing makes it deaf: of clients whose request came in two pieces, head and body, and who then
#   leave, it notices two in three (2.8.25), and the service goes on working for nobody;
# - its log lines hold paths and queries, and so links and keys: they name the app and the method.
# - it tells everybody which apps there are and where. /-/routes goes to the app at /, which asks for
#   a key; the slash at its end keeps Serve's own proxy, the backup, from knowing it. gRPC's
#   ListApplications is UNIMPLEMENTED (12): `moyin status` says what runs.
# MOYIN_HAPROXY is the program itself.
line='%ci:%cp [%tr] %ft %b\/%s %TR\/%Tw\/%Tc\/%Tr\/%Ta %ST %B %tsc %HM'
unlisted='http-request return status 200 content-type application/grpc hdr grpc-status 12'
unlisted="$unlisted hdr grpc-message \"the apps are not listed here\" if is_list_applications"
if [ "$2" = -f ]; then
    ports="${RAY_SERVE_HAPROXY_STATS_PORT:-8404}|${RAY_SERVE_HAPROXY_METRICS_PORT:-9101}"
    sed -i -E \
        -e "s/bind [*]?:($ports)\$/bind 127.0.0.1:\\1/" \
        -e "/^ *option splice-(request|response)\$/d" \
        -e "s/^( *)option httplog\$/\\1log-format \"$line\"\\n\\1timeout http-request 20s/" \
        -e "s#^( *)http-request return .* if routes\$#\\1http-request set-path /-/routes/ if routes#" \
        -e "s#^( *)(use_backend|http-request return) .* if is_list_applications\$#\\1$unlisted#" \
        "$3"
fi
exec "$MOYIN_HAPROXY" "$@"
