"""Implements durable jobs: their submission, execution, events and results.

Jobs arrive over HTTP, gRPC and message brokers, and run as Temporal workflows. Other packages
choose the models and renderers. Start reading at `service.py`, then `workflows/job.py`.
"""
