"""Shared helpers of the Python scripts: expected answers of the scripted model, and the report."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

TEXT = "Hello! It is sunny, and the answer is 3."
QUESTION = "What is the weather in 'Paris'?"
SENTENCE = "The person 'Ada' is 36 years old."
PERSON = {"name": "Ada", "age": 36}
RESULT = "sunny in Paris"


def run_page_snippet(name: str, gateway: str, key: str, model: str) -> dict[str, Any]:
    """Run a snippet of docs/clients.md, and return the variables that it has defined."""
    variables = {"gateway": gateway, "key": key, "model": model}
    path = Path(__file__).with_name(f"page_{name}.py")
    exec(compile(path.read_text(), path, "exec"), variables)
    return variables


def report_results(checks: Mapping[str, Callable[[], None]]) -> None:
    """Run the checks, and print the result of each by its name as JSON: "ok", or the traceback."""
    results = {}
    for name, check in checks.items():
        try:
            check()
            results[name] = "ok"
        except Exception:
            results[name] = traceback.format_exc()[-2000:]
    print(json.dumps(results))
