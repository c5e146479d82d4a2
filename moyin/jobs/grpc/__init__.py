"""Serves the gRPC API `moyin.v1`, by requests to the gateway's HTTP API.

``moyin.proto`` defines the API; ``scripts/grpc.sh`` generates the modules `moyin_pb2` from it.
"""
