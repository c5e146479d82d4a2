"""Builds response bodies, as documented, for states that a farm on this machine cannot have."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from deployments.gateway.cluster.bodies import ClusterBody
from deployments.models.routes.backends import BackendsBody
from moyin.text.protocol.usage import UsageReport

GIB = 1_000_000_000


def build_cluster(**members: Any) -> dict[str, Any]:
    """Return the body of ``GET /cluster`` of a farm with a graphics card that three actors share."""
    now = datetime.now(UTC)
    renderer = {
        "node": "n1", "gpu_indexes": [0], "gpus": 0.5, "cpus": 1.0, "error": None,
        "started_at": now, "losses": 0,
    }  # fmt: skip
    body = {
        "pools": [
            {
                "name": "studio", "is_responding": True, "queued": 7, "running": 2, "ready": 2,
                "oldest_waiting_since": now - timedelta(minutes=12),
                "wait_p50_seconds": 3.5, "wait_p90_seconds": 75.0, "minimum": 1, "maximum": 4,
                "comfyui_version": "0.3.75",
                "renderers": [
                    {**renderer, "name": "comfyui-studio-0", "state": "busy", "models": ["flux.gguf"]},
                    {
                        **renderer, "name": "comfyui-studio-1", "state": "failed", "models": [],
                        "losses": 3, "error": "CUDA out of memory",
                    },
                ],
            },
            {"name": "film", "is_responding": False},
        ],
        "nodes": [
            {
                "id": "n1", "host": "render-1", "is_alive": True, "cpus": 32.0,
                "memory_bytes": 128 * GIB, "labels": {"moyin-use": "render"},
                "gpus": [
                    {
                        "index": 0, "name": "NVIDIA H100", "free": 0.25,
                        "memory_used_bytes": 41 * GIB, "memory_total_bytes": 80 * GIB,
                        "temperature_celsius": 67,
                        "shares": [
                            {
                                "actor": "comfyui-studio-0", "pool": "studio", "fraction": 0.5,
                                "state": "busy", "models": ["flux.gguf", "t5.gguf"],
                            },
                            {
                                "actor": "llama-local-0", "pool": None, "fraction": 0.25,
                                "state": "ready", "models": ["smollm2-135m"],
                            },
                        ],
                    }
                ],
            }
        ],
        "problems": [
            {
                "code": "long_wait", "subject": "studio", "since": now,
                "parameters": {
                    "waiting_since": (now - timedelta(minutes=12)).isoformat(), "queued": 7,
                },
                "message": "A render has waited in the pool studio for 12 minutes; 7 wait.",
                "advice": "Add `renderers` to the pool, or send renders to another one.",
            }
        ],
        "applications": {},
        **members,
    }  # fmt: skip
    return ClusterBody.model_validate(body).model_dump(mode="json")


def build_backends() -> dict[str, Any]:
    """Return the body of ``GET /v1/backends`` with a back end that works and one whose breaker is open."""
    model = {
        "name": "gemma-3", "state": "resident", "first_token_seconds": 0.4,
        "output_tokens_per_second": 87.0,
        "quality": {"tier": 3, "mean": 1.5, "source": "public scores"},
        "usd_per_million_tokens": {"input": "0.15", "output": "0.60"},
    }  # fmt: skip
    recent_calls = {
        "calls": 120, "errors": 4, "p50_seconds": 1.2, "p90_seconds": 6.0,
        "output_tokens_per_second": 42.5,
    }  # fmt: skip
    backend = {
        "name": "berlin", "kind": "vllm", "residency": "eu", "status": "up", "breaker": "closed",
        "retry_after_seconds": 0.0, "models": [model],
        "load": {"in_flight": 3, "waiting": 5, "limit": 8}, "recent": recent_calls,
    }  # fmt: skip
    broken_backend = {
        **backend, "name": "oslo", "status": "down", "breaker": "open", "retry_after_seconds": 30.0,
        "models": [{**model, "name": "qwen-3", "state": "absent"}],
        "load": {"in_flight": 0, "waiting": 0, "limit": None},
        "recent": {**recent_calls, "calls": 9, "errors": 9, "output_tokens_per_second": None},
    }  # fmt: skip
    return BackendsBody.model_validate({"backends": [backend, broken_backend]}).model_dump(
        mode="json"
    )


def build_usage() -> dict[str, Any]:
    """Return the body of ``GET /v1/usage`` for this month by day, with renders and saved money."""
    now = datetime.now(UTC)
    token_counts = {
        "incomplete_calls": 0, "input_tokens": 1, "cached_tokens": 0, "output_tokens": 1,
        "units": {}, "load_milliseconds": 0,
    }  # fmt: skip
    today = {
        **token_counts, "calls": 1234, "cost_usd": "2.50", "render_cost_usd": "1.00",
        "dearest_cost_usd": "7.00", "day": f"{now:%Y-%m-%d}",
    }  # fmt: skip
    total = {
        **token_counts, "calls": 56789, "cost_usd": "40.00", "render_cost_usd": "10.00",
        "dearest_cost_usd": "85.00",
    }  # fmt: skip
    body = {
        "since": now.replace(day=1), "until": now, "group_by": ["day"], "total": total,
        "groups": [today], "budgets": None,
        "dearest": {"chat": {"model": "claude-opus-5-5", "backend": "claude"}, "embeddings": None},
    }  # fmt: skip
    return UsageReport.model_validate(body).model_dump(mode="json", by_alias=True)
