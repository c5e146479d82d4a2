#!/bin/sh
# Installs what clients/typescript needs to be built, and builds it: Node.js 20 and npm.
#   typescript_client.sh            build it, unless that was done since the last change
#   typescript_client.sh test       also run its tests
#   typescript_client.sh generate   first write openapi.json and the types anew, from the apps
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
if ! command -v npm > /dev/null ||
    ! node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)'; then
    echo "Node.js 20 with npm is missing" >&2
    exit 3
fi
# Tests of two processes may call this script, so only one run at a time may install.
mkdir -p build
exec 9> build/typescript-client.lock
flock 9
# Node.js has its own list of certificate authorities; make npm trust this machine's, as pip does.
authorities=/etc/ssl/certs/ca-certificates.crt
if [ -z "${NODE_EXTRA_CA_CERTS:-}" ] && [ -r "$authorities" ]; then
    export NODE_EXTRA_CA_CERTS="$authorities"
fi
[ "${1:-}" != generate ] || "$python" -m scripts.client_openapi
cd clients/typescript
if [ ! node_modules/.complete -nt package-lock.json ]; then
    npm ci --silent --no-audit --no-fund --ignore-scripts || exit 4
    touch node_modules/.complete
fi
if [ "${1:-}" = generate ]; then
    npm run --silent generate
    # Without npm, a test compares this line with the document.
    sed -i "1i // openapi.json: $(sha256sum < openapi.json | cut -c 1-64)" src/openapi.ts
fi
if [ -z "$(find build/test/scenario.js -newer package.json 2> /dev/null)" ] ||
    [ -n "$(find src test tsconfig.json tsconfig.test.json -newer build/test/scenario.js)" ]; then
    npm run --silent build
fi
[ "${1:-}" != test ] || npm test --silent
