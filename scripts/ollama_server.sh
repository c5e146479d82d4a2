#!/bin/sh
# Builds the Ollama server of the tests, and Ollama's own tests of one, from Go's module proxy and
# Debian's packages, and prints their folder, which later runs reuse. Where something is missing, it
# says what and prints nothing. `ollama_server.sh built` waits for a build that is under way, but
# starts none.
set -eu
version=0.17.4
place=${XDG_CACHE_HOME:-$HOME/.cache}/moyin/ollama
folder=$place/$version
mkdir -p "$place"
missing() {
    echo "no Ollama $version: $1" >&2
    exit 0
}
# The tests call this script, too, so only one run at a time may build.
exec 9> "$place/lock"
flock 9
if [ -x "$folder/ollama" ]; then
    echo "$folder"
    exit
fi
[ "${1:-}" != built ] || missing 'run `make ollama`'
for program in go gcc g++ dpkg-deb; do
    command -v $program > /dev/null || missing "$program is not installed"
done
build=$(mktemp -d "$place/build.XXXXXX")
trap 'rm -rf "$build"' EXIT
trap 'exit 1' HUP INT TERM
cd "$build"

# Modules come without the headers of other projects that Ollama's repository has.
headers='nlohmann-json3-dev libstb-dev'
# shellcheck disable=SC2086  # each word is one package
if ! apt-get download -qq $headers > /dev/null 2>&1; then
    if [ "$(id -u)" != 0 ] || ! apt-get update -qq || ! apt-get download -qq $headers > /dev/null; then
        missing "apt-get download $headers failed"
    fi
fi
download() {
    go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'
}
ollama=$(download "github.com/ollama/ollama@v$version") && [ -n "$ollama" ] ||
    missing "Go's module proxy does not have it, or does not answer"
malgo=$(download github.com/gen2brain/malgo@v0.11.24) && [ -n "$malgo" ] ||
    missing "Go's module proxy does not have malgo, or does not answer"

echo "building Ollama $version" >&2
cp -r "$ollama" source
chmod -R u+w source
for package in *.deb; do
    dpkg-deb -x "$package" headers
done
vendor=source/llama/llama.cpp/vendor
mkdir -p $vendor/miniaudio
cp -r headers/usr/include/* $vendor
cp "$malgo/miniaudio.h" $vendor/miniaudio
# A hundred files that include the same headers are compiled as one: 5 s of processor time, not 150.
for part in source/llama/llama.cpp/src/models source/llama/llama.cpp/tools/mtmd/models; do
    for file in "$part"/*.cpp; do
        mv "$file" "$file.part"
        echo "#include \"$(basename "$file").part\"" >> $part/all.cc
    done
done
# Only what computes is optimised. Ollama's releases choose among programs for several processors;
# ours would be the slowest of them, 30 times slower, without what every processor since 2015 has.
cpu=source/ml/backend/ggml/ggml/src/ggml-cpu
sed -i 's/#cgo CXXFLAGS: -std=c++17/& -O2/' $cpu/*.go $cpu/*/*.go $cpu/arch/x86/*.go
if grep -qw avx2 /proc/cpuinfo; then
    sed -i 's/#cgo CPPFLAGS: -I/#cgo CPPFLAGS: -march=x86-64-v3 -I/' $cpu/*.go $cpu/*/*.go $cpu/arch/x86/*.go
fi
cd source
export CGO_ENABLED=1 CGO_CFLAGS=-O2 CGO_CXXFLAGS=-O0 GOFLAGS=-buildvcs=false
export GOCACHE="${MOYIN_OLLAMA_GOCACHE:-$build/cache}"
go build -ldflags "-s -w -X github.com/ollama/ollama/version.Version=$version" -o "$build/done/ollama" .
go test -c -tags integration -ldflags '-s -w' -o "$build/done/integration.test" ./integration
cp -r integration/testdata "$build/done"
mv "$build/done" "$folder"
echo "$folder"
