#!/bin/sh
# Generates moyin/jobs/grpc/moyin_pb2*.py from moyin.proto. PYTHON: an interpreter with grpcio-tools.
set -eu
cd "$(dirname "$0")/.."
"${PYTHON:-.venv/bin/python}" -m grpc_tools.protoc --proto_path=. \
    --python_out=. --pyi_out=. --grpc_python_out=. moyin/jobs/grpc/moyin.proto
