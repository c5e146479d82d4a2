#!/bin/sh
# Stands in for HAProxy, and mends the file that Serve wrote (it comes as -db -f FILE) where Serve
# has no switch:
# - its statistics and metrics listen on every interface: both move to loopback;
# - a client may take for ever over its request's head: it gets twenty seconds;
# - splicing makes it deaf: of clients whose request came in two pieces, head and body, and who then
#   leave, it notices two in three (2.8.25), and the service goes on working for nobody;
# - its log lines hold paths and queries, and so links and keys: they name the app and the method;
# - without a route it answers 404, which clients read as "no such job", and without a replica it
#   answers Serve's page for status 500: haproxy.lua writes both as the apps would, and gRPC clients
#   get UNAVAILABLE (docs/adr/0005-errors-of-haproxy.md);
# - over gRPC an app without replicas is backed up by Serve's own proxy, which answers NOT_FOUND for
#   a route that it has not heard of yet: HAProxy cannot correct a status that comes in trailers, so
#   it answers in the proxy's place;
# - it tells everybody which apps there are and where. /-/routes goes to the app at /, which asks for
#   a key; the slash at its end keeps Serve's own proxy, the backup, from knowing it. gRPC's
#   ListApplications is UNIMPLEMENTED (12): `moyin status` says what runs.
# MOYIN_HAPROXY is the program itself, MOYIN_HAPROXY_ERRORS is haproxy.lua.
line='%ci:%cp [%tr] %ft %b\/%s %TR\/%Tw\/%Tc\/%Tr\/%Ta %ST %B %tsc %HM'
# google.rpc.Status: our code, and try again in five seconds; as moyin/jobs/grpc/faults.py packs it.
details=CA4SMHRoZSBzZXJ2aWNlIGlzIHN0YXJ0aW5nIG9yIHJlc3RhcnRpbmc7IHRyeSBhZ2FpbhpYCih0eXBlLmdvb2dsZWFwaXMuY29tL2dvb2dsZS5ycGMuRXJyb3JJbmZvEiwKE3NlcnZpY2VfdW5hdmFpbGFibGUSBW1veWluGg4KCnJlcXVlc3RfaWQSABowCih0eXBlLmdvb2dsZWFwaXMuY29tL2dvb2dsZS5ycGMuUmV0cnlJbmZvEgQKAggF

http_errors() {
    printf '    http-error status %s content-type application/json lf-string "%%[lua.moyin_error(%s)]" %s\\n' \
        400 400 '' 408 408 '' 500 500 '' 502 502 'hdr retry-after 1' 503 503 'hdr retry-after 5' \
        504 504 'hdr retry-after 5'
}

http_frontend() {
    printf '%s\\n' \
        '    http-request set-var(txn.moyin_path) path' \
        '    http-request set-var(txn.moyin_id) req.hdr(x-request-id)' \
        '    acl moyin_own var(txn.moyin_code) -m found' \
        '    acl moyin_problem var(txn.moyin_shape) -m str problem' \
        '    acl moyin_anthropic var(txn.moyin_shape) -m str anthropic' \
        '    acl moyin_comfyui_v2 var(txn.moyin_shape) -m str comfyui_v2' \
        '    http-after-response set-header x-request-id %[var(txn.moyin_id)] if moyin_own' \
        '    http-after-response set-header request-id %[var(txn.moyin_id)] if moyin_own moyin_anthropic' \
        '    http-after-response set-header x-comfy-request-id %[var(txn.moyin_id)] if moyin_own moyin_comfyui_v2' \
        '    http-after-response set-header content-type application/problem+json if moyin_own moyin_problem' \
        '    http-after-response set-header x-content-type-options nosniff if moyin_own' \
        '    http-after-response set-header x-frame-options DENY if moyin_own' \
        '    http-after-response set-header referrer-policy no-referrer if moyin_own'
}

grpc_frontend() {
    printf '%s\\n' \
        '    http-request set-var(txn.moyin_shape) str(grpc)' \
        '    http-request set-var(txn.moyin_id) req.hdr(x-request-id)' \
        '    acl moyin_own var(txn.moyin_code) -m found' \
        '    http-after-response set-header x-request-id %[var(txn.moyin_id)] if moyin_own' \
        '    http-after-response set-header content-type application/grpc if moyin_own' \
        '    http-after-response set-header grpc-status 14 if moyin_own' \
        '    http-after-response set-header grpc-message %[var(txn.moyin_message)] if moyin_own' \
        "    http-after-response set-header grpc-status-details-bin $details if moyin_own { status 503 }" \
        '    http-after-response set-status 200 if moyin_own'
}

unlisted='http-request return status 200 content-type application/grpc hdr grpc-status 12'
unlisted="$unlisted hdr grpc-message \"the apps are not listed here\" if is_list_applications"
if [ "$2" = -f ]; then
    : "${MOYIN_HAPROXY_ERRORS:?name haproxy.lua}"
    errors=$(printf '%s' "$MOYIN_HAPROXY_ERRORS" | sed 's/[&|\\]/\\&/g')
    ports="${RAY_SERVE_HAPROXY_STATS_PORT:-8404}|${RAY_SERVE_HAPROXY_METRICS_PORT:-9101}"
    # Without any app, every call is early; with some, one that names no app is wrong.
    grep -q '^backend grpc-' "$3" || none='/grpc-status 5 /d'
    sed -i -E \
        -e "s/bind [*]?:($ports)\$/bind 127.0.0.1:\\1/" \
        -e "/^ *option splice-(request|response)\$/d" \
        -e "s/^( *)option httplog\$/\\1log-format \"$line\"\\n\\1timeout http-request 20s/" \
        -e "s|^global\$|&\\n    lua-load-per-thread \"$errors\"|" \
        -e '/^ *errorfile 50[24] /d' \
        -e "s|^ *errorfile 503 .*\$|$(http_errors)|" \
        -e '/^ *http-request return status 404 .*\/-\/routes /d' \
        -e "s|^frontend http_frontend\$|&\\n$(http_frontend)|" \
        -e '/^frontend grpc_frontend$/,/^backend /s/^ *default_backend /    use_backend default_backend if { req.hdr(application) -m found }\n&/' \
        -e "s|^frontend grpc_frontend\$|&\\n$(grpc_frontend)|" \
        -e '/ proto h2 check backup$/d' \
        -e "${none:-}" \
        -e "s#^( *)http-request return .* if routes\$#\\1http-request set-path /-/routes/ if routes#" \
        -e "s#^( *)(use_backend|http-request return) .* if is_list_applications\$#\\1$unlisted#" \
        "$3"
    if ! grep -q 'moyin_error(503)' "$3" || ! grep -q 'txn.moyin_path' "$3" ||
        grep -q 'errorfile\|return status 404\|proto h2.* backup' "$3"; then
        echo "moyin: this version of Ray Serve words $3 otherwise: HAProxy's errors would not be ours" >&2
        exit 1
    fi
fi
exec "$MOYIN_HAPROXY" "$@"
