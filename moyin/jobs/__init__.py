"""Durable jobs: accepting, running, following and reporting them.

This wing owns the job's life: the service that accepts it, the Temporal workflows that run it, the
feeds and webhooks that report it, and the ways in besides HTTP (gRPC, message brokers). It never
chooses a model or a renderer. Start reading at `service.py`, then `workflows/job.py`.
"""
