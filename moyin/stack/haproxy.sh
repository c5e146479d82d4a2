#!/bin/sh
# Starts HAProxy after editing the configuration that Serve wrote (arguments: -db -f FILE), where
# Serve has no setting:
# - Statistics and metrics listen on every interface: both move to loopback.
# - The time for a request's head is unlimited: it becomes twenty seconds.
# - Splicing is disabled. With it HAProxy 2.8.25 misses a third of the disconnects of clients whose
#   request came in two pieces, head and body, and the service goes on working for them.
# - Log lines contain paths and queries, and so links and keys: they get the app and the method only.
# - Without a route HAProxy responds with 404, which clients read as "no such job", and without a
#   replica with Serve's page for status 500. haproxy.lua writes both as the apps do, and gRPC
#   clients get UNAVAILABLE (docs/adr/0005-errors-of-haproxy.md).
# - gRPC calls without the metadata `application` go to the gateway: standard clients of health checks
#   and server reflection do not send it.
# - For gRPC, Serve's own proxy is the backup of an app without replicas. It responds with NOT_FOUND
#   for a route that it does not know yet. HAProxy cannot change a status in trailers, so it responds
#   itself instead.
# - /-/routes lists the apps and their routes without a key. It is forwarded to the app at /, which
#   requires a key; the slash at its end makes it unknown to Serve's own proxy, the backup. gRPC's
#   ListApplications becomes UNIMPLEMENTED (12); `moyin status` shows the apps.
# MOYIN_HAPROXY is the path of HAProxy, MOYIN_HAPROXY_ERRORS that of haproxy.lua.
line='%ci:%cp [%tr] %ft %b\/%s %TR\/%Tw\/%Tc\/%Tr\/%Ta %ST %B %tsc %HM'
# A google.rpc.Status with Moyin's error code and a retry delay of five seconds, packed as in
# moyin/jobs/grpc/faults.py.
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
        '    http-request set-header application gateway unless { req.hdr(application) -m found }' \
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
    : "${MOYIN_HAPROXY_ERRORS:?must be the path of haproxy.lua}"
    errors=$(printf '%s' "$MOYIN_HAPROXY_ERRORS" | sed 's/[&|\\]/\\&/g')
    ports="${RAY_SERVE_HAPROXY_STATS_PORT:-8404}|${RAY_SERVE_HAPROXY_METRICS_PORT:-9101}"
    sed -i -E \
        -e "s/bind [*]?:($ports)\$/bind 127.0.0.1:\\1/" \
        -e "/^ *option splice-(request|response)\$/d" \
        -e "s/^( *)option httplog\$/\\1log-format \"$line\"\\n\\1timeout http-request 20s/" \
        -e "s|^global\$|&\\n    lua-load-per-thread \"$errors\"|" \
        -e '/^ *errorfile 50[24] /d' \
        -e "s|^ *errorfile 503 .*\$|$(http_errors)|" \
        -e '/^ *http-request return status 404 .*\/-\/routes /d' \
        -e "s|^frontend http_frontend\$|&\\n$(http_frontend)|" \
        -e '/^frontend grpc_frontend$/,/^backend /s/^( *)default_backend .*/\1default_backend default_backend/' \
        -e "s|^frontend grpc_frontend\$|&\\n$(grpc_frontend)|" \
        -e '/ proto h2 check backup$/d' \
        -e "s#^( *)http-request return .* if routes\$#\\1http-request set-path /-/routes/ if routes#" \
        -e "s#^( *)(use_backend|http-request return) .* if is_list_applications\$#\\1$unlisted#" \
        "$3"
    if ! grep -q 'moyin_error(503)' "$3" || ! grep -q 'txn.moyin_path' "$3" ||
        grep -q 'errorfile\|return status 404\|proto h2.* backup' "$3"; then
        echo "moyin: $3 has an unknown format: this version of Ray Serve is not supported" >&2
        exit 1
    fi
fi
exec "$MOYIN_HAPROXY" "$@"
