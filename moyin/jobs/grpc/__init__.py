"""Serves `moyin.v1` over gRPC by calling the gateway's HTTP API, so identity, limits and errors agree.

``moyin.proto`` is the contract; ``scripts/grpc.sh`` generates the modules beside it.
"""
