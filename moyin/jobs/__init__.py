"""Implements durable jobs: their submission, execution, events and results.

Jobs arrive over HTTP, gRPC and message brokers, and run as Temporal workflows. Models and renderers
are chosen by other packages. Start reading at `service.py`, then `workflows/job.py`.
"""
