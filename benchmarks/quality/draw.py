"""Draws 200 public prompts in eight classes, to evaluate a router that has learned nothing yet.

``python -m benchmarks.quality.draw [--seed 15] [--clones FOLDER] TARGET``. The committed file
`mix/prompts.jsonl` was drawn with seed 15 before any router was run on it. Seed 16 draws other
prompts, for development, which are not stored. FOLDER contains bare clones named ``owner+name``;
without FOLDER they are cloned from GitHub. Licences: `mix/LICENSES.md`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.quality.folds import DEVELOPMENT, FOLDS, split_by_row
from benchmarks.quality.tables import COMMIT, Row, read_tables

SEED = 15
EACH = 25
_COMMITS = {
    "gunthercox/chatterbot-corpus": "a01efece26661309b870af0251d96f94ee09fb19",
    "yizhongw/self-instruct": "0b26ccaa415992100fa32df62d41b994cf928e23",
    "openai/human-eval": "6d43fb980f9fee3c892a914eda09951f772ad10d",
    "Modalities/MT-Bench-X": "f8972dc70595a7e981ada7f2ac5e7c191ab12441",
    "Stability-AI/FastChat": "e37eb28ee490480f6f4989274ed47c55f7dfce82",
    "Yale-LILY/QMSum": "83d7768c1f2b4dfeb091385d3dc7e239b8e5bb7e",
    "lm-sys/RouteLLM": COMMIT,
}
# Instructions of Self-Instruct that ask to extract from a text or to classify it.
_EXTRACTING = re.compile(
    r"\b(extract|retrieve|parse|classif\w*|categor\w*|identify|detect|decide|determine|assess"
    r"|tell me (if|whether)|find out|pick|predict the intent)\b",
    re.IGNORECASE,
)
# Tasks with offensive input, which are left out.
_OFFENSIVE = re.compile(r"offensive|toxic|hate|bias|stereotype|passive-aggressive", re.IGNORECASE)
_TRANSCRIPT_LENGTHS = (4_000, 8_000, 16_000)  # characters

Read = Callable[[str, str], bytes]  # repository, path


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A drawn prompt with its class and source."""

    kind: str
    source: str
    text: str


def draw_prompts(seed: int, clones: Path) -> list[Prompt]:
    """Draw the prompts for ``seed``; those of `mix/prompts.jsonl` were drawn with the main seed."""

    def read(repository: str, path: str) -> bytes:
        folder = _find_clone(repository, clones)
        command = ["git", "--git-dir", str(folder), "show", f"{_COMMITS[repository]}:{path}"]
        return subprocess.run(command, check=True, capture_output=True).stdout

    prompt_mix: list[Prompt] = []
    for kind, pool in _read_pools(read, clones).items():
        rng = random.Random(f"{SEED} {kind}")
        shuffled_prompts = sorted(pool, key=lambda prompt: prompt.text)
        rng.shuffle(shuffled_prompts)
        chosen_rows, remaining_rows = shuffled_prompts[:EACH], shuffled_prompts[EACH:]
        if seed != SEED:
            random.Random(f"{seed} {kind}").shuffle(remaining_rows)
            chosen_rows = remaining_rows[:EACH]
        prompt_mix += chosen_rows
    return prompt_mix


def _read_pools(read: Read, clones: Path) -> dict[str, list[Prompt]]:
    with tempfile.TemporaryDirectory() as folder:
        clone_command = [
            "git",
            "clone",
            "--quiet",
            str(_find_clone("lm-sys/RouteLLM", clones)),
            folder,
        ]
        subprocess.run(clone_command, check=True)
        tables = read_tables(folder)
    return {
        "easy chat": _read_chats(read),
        "extraction": _read_extractions(read),
        "arithmetic": _read_unseen_questions(tables.gsm8k, lambda _: True, "arithmetic", "GSM8K"),
        "code": [
            Prompt(kind="code", source="HumanEval", text=json.loads(line)["prompt"])
            for line in gzip.decompress(
                read("openai/human-eval", "data/HumanEval.jsonl.gz")
            ).splitlines()
        ],
        "law": _read_unseen_questions(
            tables.mmlu, lambda row: row.subject == "professional_law", "law", "MMLU"
        ),
        "German": _read_first_turns(
            read, "Modalities/MT-Bench-X", "data/mt_bench_DE/question.jsonl", "German"
        ),
        "Japanese": _read_first_turns(
            read,
            "Stability-AI/FastChat",
            "fastchat/llm_judge/data/japanese_mt_bench/question_full.jsonl",
            "Japanese",
        ),
        "long documents": _read_documents(read),
    }


def _read_chats(read: Read) -> list[Prompt]:
    """Return the first lines of the conversations in a corpus of small talk, as easy prompts.

    Args:
        read: returns the text of a file in a repository.
    """
    texts: dict[str, None] = {}
    for topic in ("greetings", "conversations"):
        path = f"chatterbot_corpus/data/english/{topic}.yml"
        for conversation in yaml.safe_load(read("gunthercox/chatterbot-corpus", path))[
            "conversations"
        ]:
            texts[str(conversation[0])] = None
    return [
        Prompt(kind="easy chat", source="ChatterBot corpus", text=first_line)
        for first_line in texts
    ]


def _read_extractions(read: Read) -> list[Prompt]:
    """Return tasks that extract something from a given text or classify the text."""
    prompts = []
    for path in ("human_eval/user_oriented_instructions.jsonl", "data/seed_tasks.jsonl"):
        for task in _parse_lines(read("yizhongw/self-instruct", path)):
            instruction, input_text = task["instruction"], task["instances"][0]["input"].strip()
            is_wanted = _EXTRACTING.search(instruction) and not _OFFENSIVE.search(instruction)
            if is_wanted and input_text:
                prompt_text = f"{instruction}\n\n{input_text}"
                prompts.append(Prompt(kind="extraction", source="Self-Instruct", text=prompt_text))
    return prompts


def _read_unseen_questions(
    rows: Sequence[Row], is_wanted: Callable[[Row], bool], kind: str, source: str
) -> list[Prompt]:
    """Return the questions for which ``is_wanted`` is True, from folds that were not learned from.

    These are the folds that `benchmarks.quality.prior` does not use.

    Args:
        kind, source: class and source of the returned prompts.
    """
    splits = split_by_row(rows)
    return [
        Prompt(kind=kind, source=source, text=rows[number].prompt)
        for fold in range(FOLDS)
        if fold not in DEVELOPMENT
        for number in splits[fold][1]
        if is_wanted(rows[number])
    ]


def _read_first_turns(read: Read, repository: str, path: str, kind: str) -> list[Prompt]:
    """Return the first question of each conversation in a translated MT-Bench."""
    return [
        Prompt(kind=kind, source=repository, text=question["turns"][0])
        for question in _parse_lines(read(repository, path))
    ]


def _read_documents(read: Read) -> list[Prompt]:
    """Return long prompts: the start of a meeting's transcript, and a question about it."""
    prompts = []
    for domain in ("Academic", "Committee", "Product"):
        for split_name in ("test", "val"):
            path = f"data/{domain}/jsonl/{split_name}.jsonl"
            for number, meeting in enumerate(_parse_lines(read("Yale-LILY/QMSum", path))):
                rng = random.Random(f"{path} {number}")
                turns = meeting["meeting_transcripts"]
                transcript = "\n".join(f"{turn['speaker']}: {turn['content']}" for turn in turns)
                transcript = transcript[: rng.choice(_TRANSCRIPT_LENGTHS)]
                queries = meeting["general_query_list"] + meeting["specific_query_list"]
                query = rng.choice(queries)["query"]
                prompts.append(
                    Prompt(kind="long documents", source="QMSum", text=f"{transcript}\n\n{query}")
                )
    return prompts


def _parse_lines(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.decode().splitlines() if line.strip()]


def _find_clone(repository: str, clones: Path) -> Path:
    folder = clones / repository.replace("/", "+")
    if not folder.exists():
        address = f"https://github.com/{repository}"
        subprocess.run(["git", "clone", "--quiet", "--bare", address, str(folder)], check=True)
    return folder


def main() -> None:
    """Draw the prompts and write them to the file that the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.draw")
    parser.add_argument("target", type=Path, help="file to write")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--clones", type=Path, help="folder of bare clones, owner+name")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prompt_mix = draw_prompts(arguments.seed, arguments.clones or Path(folder))
    rows = (
        {"class": prompt.kind, "source": prompt.source, "prompt": prompt.text}
        for prompt in prompt_mix
    )
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    arguments.target.write_text("".join(lines))


if __name__ == "__main__":
    main()
