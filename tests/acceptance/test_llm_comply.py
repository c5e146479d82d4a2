"""Runs llm-comply's cases, one test each, against the vendors' OpenAPI documents."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import pytest
from llm_comply import __version__
from llm_comply.config import ComplianceConfig
from llm_comply.result import TestStatus as Status
from llm_comply.runner import TestRunner as Runner
from llm_comply.schema import SpecLoader
from llm_comply.test_case import TestCase as Case
from llm_comply.tests.anthropic import ANTHROPIC_TESTS
from llm_comply.tests.openai_chat import OPENAI_CHAT_TESTS

from tests.acceptance.text_gateway import CLAUDE, LLAMA, SCRIPTED_CLAUDE, SCRIPTED_GPT, TextGateway

SUITE = f"llm-comply {__version__}"


def _parametrize_cases(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.id)


@pytest.mark.parametrize("model", [LLAMA, CLAUDE, SCRIPTED_GPT])
@_parametrize_cases(OPENAI_CHAT_TESTS)
def test_openai_chat_complies(text_gateway: TextGateway, model: str, case: Case) -> None:
    _run_case(text_gateway, model, case, _load_spec("openai_chat"))


@pytest.mark.parametrize("model", [LLAMA, SCRIPTED_CLAUDE])
@_parametrize_cases(ANTHROPIC_TESTS)
def test_anthropic_complies(text_gateway: TextGateway, model: str, case: Case) -> None:
    _run_case(text_gateway, model, case, _load_spec("anthropic"))


@cache
def _load_spec(name: str) -> SpecLoader:
    return SpecLoader(str(files("llm_comply.specs").joinpath(f"{name}.json")))


def _run_case(text_gateway: TextGateway, model: str, case: Case, spec: SpecLoader) -> None:
    config = ComplianceConfig(
        base_url=text_gateway.openai_url, api_key=text_gateway.api_key, model=model, verbose=True
    )
    result = Runner(config, [case], spec).run_one(case)
    if result.status is Status.SKIPPED:
        pytest.skip(result.errors[0])
    # What a case only warns of counts as well, except where llama.cpp's own bytes are passed on.
    problems = result.errors + ([] if model == LLAMA else result.warnings)
    if problems:
        pytest.fail("\n".join([*problems, str(result.response)]))
