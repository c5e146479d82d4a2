"""Computes optional features of a text's meaning, in addition to the features of its words.

The weights are the static ones in the wheel of ``wordllama`` (extra ``embedder``): one vector of
`MEANING_DIMENSIONS` numbers per token, averaged over the text and scaled to unit length. Nothing is
downloaded. The extra's version range keeps tokens and weights the same in all replicas, so that
replicas can use each other's stored features.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from moyin.text.quality.question import (
    FIRST_MEANING_FEATURE,
    MEANING_DIMENSIONS,
    MEANING_SCALE,
    MEANING_STEPS,
)

SUPPORTED_EMBEDDERS = ("wordllama",)  # the packages that `load_embedder` supports
_WEIGHTS_PATH = "weights/l2_supercat_256.safetensors"
_TOKENIZER_PATH = "tokenizers/l2_supercat_tokenizer_config.json"


class EmbedderNotInstalled(ValueError):
    """Raised if the package of the configured embedder is not installed."""


class Embedder:
    """Computes features of a text's meaning.

    Args:
        folder: the folder of the package, which contains its weights and its tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        # The package's own loader is not used, because it looks for its tokenizer on the Internet
        # and configures the root logger.
        import numpy as np
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        self._vectors = load_file(folder / _WEIGHTS_PATH)["embedding.weight"].astype(np.float32)
        if self._vectors.shape[1] != MEANING_DIMENSIONS:
            raise ValueError(
                f"{folder / _WEIGHTS_PATH} must have {MEANING_DIMENSIONS} numbers per token: "
                "reinstall the extra 'embedder' (pip install 'moyin[embedder]')"
            )
        self._tokenizer: Any = Tokenizer.from_file(str(folder / _TOKENIZER_PATH))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._numbers = [
            FIRST_MEANING_FEATURE + MEANING_STEPS * dimension + MEANING_STEPS // 2
            for dimension in range(MEANING_DIMENSIONS)
        ]
        self._np = np

    def __call__(self, text: str) -> tuple[int, ...]:
        """Return the features of the text's meaning: one number per dimension of its embedding.

        Each number encodes a dimension and the rounded value of the embedding in this dimension. The
        result is an empty tuple if ``text`` has no tokens.
        """
        # JSON may contain lone surrogates, which the tokenizer rejects.
        text = text.encode(errors="replace").decode()
        token_ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        vector_sum = self._vectors[token_ids].sum(axis=0) if token_ids else None
        if vector_sum is None or not (norm := float(self._np.linalg.norm(vector_sum))):
            return ()
        max_steps = MEANING_STEPS // 2
        steps = (
            self._np.clip(self._np.rint(vector_sum * (MEANING_SCALE / norm)), -max_steps, max_steps)
            .astype(int)
            .tolist()
        )
        return tuple(map(int.__add__, self._numbers, steps))


def find_package_folder(name: str) -> Path:
    """Return the folder of an embedder's installed package.

    Raises:
        EmbedderNotInstalled: the package is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise EmbedderNotInstalled(
            f"the package {name!r} is not installed here: install the extra 'embedder' on every "
            "node (pip install 'moyin[embedder]'), or omit the setting 'embedder'"
        )
    return Path(spec.submodule_search_locations[0])


@cache
def load_embedder(name: str) -> Embedder:
    """Load the embedder ``name``, which takes a third of a second once per process.

    Raises:
        EmbedderNotInstalled: the embedder's package is not installed.
    """
    return Embedder(find_package_folder(name))
