"""Reads tables of answers that RouteLLM published, and checks their hashes.

RouteLLM (https://github.com/lm-sys/RouteLLM, Apache License 2.0; Ong et al., 2024) ran Mixtral-8x7B
and GPT-4-1106 on the questions of MMLU, GSM8K and MT-Bench and published which answers were right.
This repository contains only numbers that were computed from these tables.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PUBLIC = "https://github.com/lm-sys/RouteLLM"
COMMIT = "0b64fdafe049e596a3f5657c219329f24af24198"
WEAK = "mistralai/Mixtral-8x7B-Instruct-v0.1"
STRONG = "gpt-4-1106-preview"
HASHES = Path(__file__).with_name("tables.sha256")
_FOLDER = "routellm/evals"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A prompt, and how good the answers of both models are, from 0 to 1.

    Attributes:
        subject: the subject in MMLU, the category in MT-Bench, empty for GSM8K.
        weak: the quality of the cheap model's answer.
        strong: the quality of the expensive model's answer.
    """

    prompt: str
    subject: str
    weak: float
    strong: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """Three tables with a row per prompt, without prompts that RouteLLM found in training data."""

    mmlu: tuple[Row, ...]
    gsm8k: tuple[Row, ...]
    mt_bench: tuple[Row, ...]


def read_tables(source: str = PUBLIC) -> Tables:
    """Return the tables from ``source``: a folder, or the address of a git repository.

    Raises:
        ValueError: a file differs from the one that the published results were computed from.
    """
    if (Path(source) / _FOLDER).is_dir():
        return _read_files(Path(source))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", source, folder], check=True)
        subprocess.run(["git", "-C", folder, "checkout", "--quiet", COMMIT], check=True)
        return _read_files(Path(folder))


def _read_files(root: Path) -> Tables:
    text_by_name = {name: _read_checked_file(root, name, digest) for name, digest in _read_hashes()}
    mmlu_names = [name for name in text_by_name if "/mmlu/responses/" in name]
    mmlu = [
        row
        for name in mmlu_names
        for row in _read_answers(text_by_name[name], Path(name).stem.removeprefix("mmlu_"))
    ]
    return Tables(
        mmlu=_drop_contaminated(mmlu, text_by_name[f"{_FOLDER}/mmlu/contaminated_prompts.jsonl"]),
        gsm8k=_drop_contaminated(
            _read_answers(text_by_name[f"{_FOLDER}/gsm8k/gsm8k_responses.csv"], ""),
            text_by_name[f"{_FOLDER}/gsm8k/contaminated_prompts.jsonl"],
        ),
        mt_bench=_drop_contaminated(
            _read_judgements(
                text_by_name[f"{_FOLDER}/mt_bench/question.jsonl"],
                text_by_name[f"{_FOLDER}/mt_bench/judgements.jsonl"],
            ),
            text_by_name[f"{_FOLDER}/mt_bench/contaminated_prompts.jsonl"],
        ),
    )


def _read_hashes() -> Iterator[tuple[str, str]]:
    for line in HASHES.read_text().splitlines():
        digest, _, name = line.partition("  ")
        yield name, digest


def _read_checked_file(root: Path, name: str, digest: str) -> str:
    content = (root / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{name} differs from the file of commit {COMMIT}: check out that commit")
    return content.decode()


def _read_answers(csv_text: str, subject: str) -> Iterator[Row]:
    for row in csv.DictReader(io.StringIO(csv_text)):
        yield Row(
            prompt=row["prompt"],
            subject=subject,
            weak=float(row[WEAK] == "True"),
            strong=float(row[STRONG] == "True"),
        )


def _read_judgements(questions: str, judgements: str) -> Iterator[Row]:
    """Yield a row for the first question of each conversation in MT-Bench.

    The quality of an answer is the mean score of both turns, as in RouteLLM, divided by 10.
    """
    scores: dict[tuple[int, str], list[float]] = {}
    for line in judgements.splitlines():
        judgement = json.loads(line)
        scores.setdefault((judgement["question_id"], judgement["model"]), []).append(
            judgement["score"]
        )
    for line in questions.splitlines():
        question = json.loads(line)
        weak_scores, strong_scores = (
            scores[question["question_id"], model] for model in (WEAK, STRONG)
        )
        yield Row(
            prompt=question["turns"][0],
            subject=question["category"],
            weak=sum(weak_scores) / len(weak_scores) / 10,
            strong=sum(strong_scores) / len(strong_scores) / 10,
        )


def _drop_contaminated(rows: Iterator[Row] | list[Row], contaminated_lines: str) -> tuple[Row, ...]:
    known_prompts = {json.loads(line)["eval_prompt"] for line in contaminated_lines.splitlines()}
    return tuple(row for row in rows if row.prompt not in known_prompts)
