#!/bin/sh
# Writes moyin/grpc/moyin_pb2*.py from moyin/grpc/moyin.proto. PYTHON: one with grpcio-tools.
set -eu
cd "$(dirname "$0")/.."
"${PYTHON:-.venv/bin/python}" -m grpc_tools.protoc --proto_path=. \
    --python_out=. --pyi_out=. --grpc_python_out=. moyin/grpc/moyin.proto
