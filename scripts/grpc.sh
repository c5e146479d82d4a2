#!/bin/sh
# Writes moyin/jobs/grpc/moyin_pb2*.py from moyin/jobs/grpc/moyin.proto. PYTHON: one with grpcio-tools.
set -eu
cd "$(dirname "$0")/.."
"${PYTHON:-.venv/bin/python}" -m grpc_tools.protoc --proto_path=. \
    --python_out=. --pyi_out=. --grpc_python_out=. moyin/jobs/grpc/moyin.proto
