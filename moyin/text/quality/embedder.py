"""Turns a text into numbers of its meaning, as features beside those of its words. Optional.

The weights are the static ones in the wheel of ``wordllama`` (extra ``embedder``): one vector of
`DIMENSIONS` numbers per token, averaged over the text and scaled to unit length. Nothing is
downloaded. Tokens and weights are the same in every process, so that replicas can read each other's
stored features; the version range of the extra ensures it.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from moyin.text.quality.question import (
    DIMENSIONS,
    FIRST_MEANING_VALUE,
    MEANING_SCALE,
    MEANING_STEPS,
)

__all__ = ["EMBEDDERS", "Embedder", "EmbedderMissing", "new_embedder", "package_folder"]

EMBEDDERS = ("wordllama",)  # supported packages
_WEIGHTS = "weights/l2_supercat_256.safetensors"
_TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"


class EmbedderMissing(ValueError):
    """Raised when the configured embedder's package is not installed."""


class Embedder:
    """Computes features of a text's meaning.

    Args:
        folder: of the package with weights and tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        # Loaded directly, because the package's loader looks for its tokenizer on the Internet and
        # configures the root logger.
        import numpy as np
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        self._vectors = load_file(folder / _WEIGHTS)["embedding.weight"].astype(np.float32)
        if self._vectors.shape[1] != DIMENSIONS:
            raise ValueError(f"{folder / _WEIGHTS}: expected {DIMENSIONS} numbers per token")
        self._tokenizer: Any = Tokenizer.from_file(str(folder / _TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._numbers = [
            FIRST_MEANING_VALUE + MEANING_STEPS * dimension + MEANING_STEPS // 2
            for dimension in range(DIMENSIONS)
        ]
        self._np = np

    def __call__(self, text: str) -> tuple[int, ...]:
        """Return `DIMENSIONS` features of the meaning of ``text``; none if it has no tokens."""
        # A tokenizer rejects lone surrogates, which JSON may contain.
        text = text.encode(errors="replace").decode()
        tokens = self._tokenizer.encode(text, add_special_tokens=False).ids
        sums = self._vectors[tokens].sum(axis=0) if tokens else None
        if sums is None or not (length := float(self._np.linalg.norm(sums))):
            return ()
        max_steps = MEANING_STEPS // 2
        steps = (
            self._np.clip(self._np.rint(sums * (MEANING_SCALE / length)), -max_steps, max_steps)
            .astype(int)
            .tolist()
        )
        return tuple(map(int.__add__, self._numbers, steps))


def package_folder(name: str) -> Path:
    """Return the folder of an embedder's package, which holds its weights.

    Raises:
        EmbedderMissing: the package is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise EmbedderMissing(
            f"the package {name!r} is not installed here; install the extra 'embedder' on every node "
            "(pip install 'moyin[embedder]'), or leave 'embedder' out"
        )
    return Path(spec.submodule_search_locations[0])


@cache
def new_embedder(name: str) -> Embedder:
    """Return the embedder ``name``, loaded once per process in a third of a second.

    Raises:
        EmbedderMissing: its package is not installed.
    """
    return Embedder(package_folder(name))
