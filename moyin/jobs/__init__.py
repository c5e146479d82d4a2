"""Implements durable jobs: accepting, running, following and reporting them.

Jobs arrive over HTTP, gRPC and message brokers, and run as Temporal workflows. This package never
chooses a model or a renderer. Start reading at `service.py`, then `workflows/job.py`.
"""
