from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from moyin.render.protocol import wire

_BODIES: list[tuple[type[BaseModel], Any]] = [
    (wire.RemovalBody, lambda prompt_id: {"delete": [prompt_id]}),
    (wire.CancelBody, lambda prompt_id: {"job_ids": [prompt_id]}),
    (wire.InterruptBody, lambda prompt_id: {"prompt_id": prompt_id}),
]


@pytest.mark.parametrize(("model", "make_body"), _BODIES)
def test_prompt_ids_are_any_text_without_nul(model: type[BaseModel], make_body: Any) -> None:
    for prompt_id in ("a\nb", "", "ü"):
        model.model_validate(make_body(prompt_id))
    with pytest.raises(ValidationError):
        model.model_validate(make_body("a\0b"))
