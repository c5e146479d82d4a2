"""Which nodes are for renders alone."""

from __future__ import annotations

__all__ = ["NOT_FOR_RENDERS"]

# Whatever else ran on a node that an autoscaler has started for renders would keep it for ever.
# Nodes without the label are for everybody, such as the only one of a small installation.
NOT_FOR_RENDERS = {"moyin-use": "!render"}
