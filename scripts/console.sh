#!/bin/sh
# Builds the console from console/ into moyin/console/built, which is committed: Node.js 20 and npm.
#   console.sh          build it, unless nothing has changed since
#   console.sh check    build it elsewhere and compare it with what is committed
#   console.sh install  only install what the build and the tests of pages need
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
if ! command -v npm > /dev/null ||
    ! node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)'; then
    echo "Node.js 20 with npm is missing" >&2
    exit 3
fi
mkdir -p build
exec 9> build/console.lock
flock 9
# Node.js has its own list of certificate authorities; make npm trust this machine's, as pip does.
authorities=/etc/ssl/certs/ca-certificates.crt
if [ -z "${NODE_EXTRA_CA_CERTS:-}" ] && [ -r "$authorities" ]; then
    export NODE_EXTRA_CA_CERTS="$authorities"
fi
install() {
    if [ ! console/node_modules/.complete -nt console/package-lock.json ]; then
        (cd console && npm ci --silent --no-audit --no-fund --ignore-scripts) || exit 4
        touch console/node_modules/.complete
    fi
}
if [ "${1:-}" = install ]; then
    install
    exit 0
fi
digest=$("$python" -m scripts.console_sources)
[ "${1:-}" = check ] || [ "$digest" != "$(cat moyin/console/built/sources.sha256 2> /dev/null)" ] || exit 0
"$python" -m scripts.console_sources openapi
install
cd console
for app in gateway models accounts; do
    npx --no-install openapi-typescript "build/api/$app.json" --default-non-nullable=false \
        --output "build/api/$app.d.ts" > /dev/null
done
npx --no-install tsc --noEmit
if [ "${1:-}" = check ]; then
    npx --no-install vite build --logLevel warn --outDir "$PWD/build/check"
    echo "$digest" > build/check/sources.sha256
    diff -r build/check ../moyin/console/built
else
    npx --no-install vite build --logLevel warn
    echo "$digest" > ../moyin/console/built/sources.sha256
fi
