"""Estimates how well each candidate would answer one request."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Mapping
from typing import Any

from moyin.domain.needs import Needs
from moyin.text.protocol.codec import ParsedRequest
from moyin.text.quality.estimator import Estimate, Estimator
from moyin.text.quality.question import Question, question_of, stored_features
from moyin.text.routing.catalog import ModelDeployment

__all__ = ["RequestQuality", "question_from_json", "question_to_json"]


class RequestQuality:
    """Computes the estimates of one request on first use and keeps them.

    The text of a request that has only one candidate is never read.

    Attributes:
        usd_per_bad_answer: cost of a useless answer.
        floor: lowest probability of a good answer that the client accepts; 0: any.
    """

    __slots__ = (
        "_embed",
        "_estimates",
        "_estimator",
        "_needs",
        "_question",
        "_request",
        "_tenant",
        "floor",
        "usd_per_bad_answer",
    )

    def __init__(
        self,
        estimator: Estimator,
        tenant: str,
        request: ParsedRequest,
        needs: Needs,
        *,
        usd_per_bad_answer: float,
        floor: float,
        embed: Callable[[str], tuple[int, ...]] | None = None,
    ) -> None:
        self._estimator = estimator
        self._tenant = tenant
        self._request = request
        self._needs = needs
        self._embed = embed
        self._question: Question | None = None
        # By model, because all hosts of a model answer equally well.
        self._estimates: dict[str, Estimate] = {}
        self.usd_per_bad_answer = usd_per_bad_answer
        self.floor = floor

    @property
    def is_estimated(self) -> bool:
        """True if an estimate was made, so that `question` is available at no cost."""
        return self._question is not None

    @property
    def question(self) -> Question:
        """The features of the request that estimates use."""
        question = self._question
        if question is None:
            needs = self._needs
            question = self._question = question_of(
                self._request.recent_turns(),
                tools=needs.tools,
                schema=needs.schema,
                pictures=needs.vision,
                thinking=needs.thinking,
                prompt_tokens=needs.prompt_tokens,
                embed=self._embed,
            )
        return question

    def estimate(self, deployment: ModelDeployment) -> Estimate:
        """Return the probability that this model's answer is good, with its bounds."""
        model = deployment.model.name
        estimate = self._estimates.get(model)
        if estimate is None:
            question = self._question
            if question is None:
                question = self.question
            estimate = self._estimates[model] = self._estimator.estimate(
                self._tenant, model, deployment.ability, question
            )
        return estimate

    def meets_floor(self, deployment: ModelDeployment) -> bool:
        """Return whether the lower bound reaches the client's floor."""
        return not self.floor or self.estimate(deployment).low >= self.floor


def question_to_json(question: Question) -> dict[str, Any]:
    """Return a JSON value that `question_from_json` reads."""
    features = question.features
    # Packed: writing a list of a hundred numbers takes longer than the rest of the row.
    packed = struct.pack(f"<{len(features)}I", *features)
    return {
        "kind": question.kind,
        "language": question.language,
        "difficulty": round(question.difficulty, 4),
        "spread": round(question.spread, 4),
        "features": base64.b64encode(packed).decode(),
    }


def question_from_json(value: Mapping[str, Any]) -> Question:
    """Return the question that `question_to_json` wrote, also in an earlier version."""
    features = value["features"]
    if isinstance(features, str):
        packed = base64.b64decode(features)
        features = struct.unpack(f"<{len(packed) // 4}I", packed)
    return Question(**{**value, "features": stored_features(features)})
