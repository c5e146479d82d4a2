from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from deployments.gateway.builder import GatewayArgs
from deployments.workers.builder import WorkersArgs


@pytest.mark.parametrize("args", [GatewayArgs, WorkersArgs])
def test_unknown_args_are_rejected(args: type[BaseModel]) -> None:
    args()
    with pytest.raises(ValidationError):
        args(**{"pool": ["x"]})


def test_the_gateway_needs_a_pool() -> None:
    with pytest.raises(ValidationError):
        GatewayArgs(pools=[])
