"""gRPC: `moyin.v1` onto the door's HTTP, so that identity, limits and errors are the same ones.

``moyin.proto`` is the contract; ``scripts/grpc.sh`` writes the modules beside it.
"""
