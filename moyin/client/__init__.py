"""Calls Moyin's own HTTP API, for every part that is itself a client of the gateway.

The callers are the steps of jobs, the gRPC service, the models app and the command line.
"""
