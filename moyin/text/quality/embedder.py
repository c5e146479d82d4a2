"""An optional embedder: what a text means, as numbers beside those of its words.

The weights are the static ones that the wheel of ``wordllama`` carries (extra ``embedder``): one
vector of `DIMENSIONS` numbers per token, averaged over the text and brought to unit length. Nothing is
downloaded. Tokens and weights are the same in every process, so that what one replica stored another can
read; the range of the extra holds the version.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from moyin.text.quality.question import DIMENSIONS, FINE, MEANINGS, STEPS

__all__ = ["EMBEDDERS", "Embedder", "EmbedderMissing", "new_embedder", "package_folder"]

EMBEDDERS = ("wordllama",)  # packages that can be named
_WEIGHTS = "weights/l2_supercat_256.safetensors"
_TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"


class EmbedderMissing(ValueError):
    """The configuration asks for an embedder whose package is not installed."""


class Embedder:
    """Turns a text into the numbers of its meaning.

    Args:
        folder: of the package that holds weights and tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        # Loaded by themselves: the package's own loader looks for its tokenizer on the Internet, and
        # importing it configures the root logger.
        import numpy as np
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        self._vectors = load_file(folder / _WEIGHTS)["embedding.weight"].astype(np.float32)
        if self._vectors.shape[1] != DIMENSIONS:
            raise ValueError(f"{folder / _WEIGHTS}: not {DIMENSIONS} numbers a token")
        self._tokenizer: Any = Tokenizer.from_file(str(folder / _TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._numbers = [MEANINGS + STEPS * at + STEPS // 2 for at in range(DIMENSIONS)]
        self._np = np

    def __call__(self, text: str) -> tuple[int, ...]:
        """Return `DIMENSIONS` numbers of what ``text`` means; none where it has no tokens."""
        # Halves of surrogate pairs, which JSON may hold, are no text to a tokenizer.
        text = text.encode(errors="replace").decode()
        tokens = self._tokenizer.encode(text, add_special_tokens=False).ids
        sums = self._vectors[tokens].sum(axis=0) if tokens else None
        if sums is None or not (length := float(self._np.linalg.norm(sums))):
            return ()
        most = STEPS // 2
        steps = (
            self._np.clip(self._np.rint(sums * (FINE / length)), -most, most).astype(int).tolist()
        )
        return tuple(map(int.__add__, self._numbers, steps))


def package_folder(name: str) -> Path:
    """Return the folder of the package of an embedder, which holds its weights.

    Raises:
        EmbedderMissing: it is not installed.
    """
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise EmbedderMissing(
            f"the package {name!r} is not installed here; install the extra 'embedder' on every node "
            "(pip install 'moyin[embedder]'), or leave 'embedder' out"
        )
    return Path(found.submodule_search_locations[0])


@cache
def new_embedder(name: str) -> Embedder:
    """Return the embedder ``name``, loaded once per process, which takes a third of a second.

    Raises:
        EmbedderMissing: its package is not installed.
    """
    return Embedder(package_folder(name))
