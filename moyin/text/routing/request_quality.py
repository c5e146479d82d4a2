"""Estimates the probability that each candidate answers a request well."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from moyin.domain.needs import Needs
from moyin.text.protocol.codec import ParsedRequest
from moyin.text.quality.estimator import Estimate, Estimator
from moyin.text.quality.question import Question, build_question, restore_features
from moyin.text.routing.catalog import ModelDeployment


@dataclass(eq=False, slots=True)
class RequestQuality:
    """Quality estimates of one request, computed on first use.

    The text of a request is not read if no estimate is needed, as with only one candidate.

    Attributes:
        usd_per_bad_answer: cost of a useless answer.
        floor: minimum probability of a good answer that the client accepts; 0 accepts any.
        embed: returns the semantic features of a prompt. If it is None, only words are features.
    """

    estimator: Estimator
    tenant: str
    request: ParsedRequest
    needs: Needs
    _: KW_ONLY
    usd_per_bad_answer: float
    floor: float
    embed: Callable[[str], tuple[int, ...]] | None = None
    _question: Question | None = None
    # By model, because all hosts of a model answer equally well.
    _estimates: dict[str, Estimate] = field(default_factory=dict)

    @property
    def is_estimated(self) -> bool:
        """True if at least one estimate was computed, so that `question` is available."""
        return self._question is not None

    @property
    def question(self) -> Question:
        """The features of the request that the estimates depend on."""
        question = self._question
        if question is None:
            needs = self.needs
            question = self._question = build_question(
                self.request.select_recent_turns(),
                tools=needs.tools,
                schema=needs.schema,
                pictures=needs.vision,
                thinking=needs.thinking,
                prompt_tokens=needs.prompt_tokens,
                embed=self.embed,
            )
        return question

    def estimate(self, deployment: ModelDeployment) -> Estimate:
        """Return the probability that the deployment's model answers well, with its bounds."""
        model = deployment.model.name
        estimate = self._estimates.get(model)
        if estimate is None:
            question = self._question
            if question is None:
                question = self.question
            estimate = self._estimates[model] = self.estimator.estimate(
                self.tenant, model, deployment.ability, question
            )
        return estimate

    def meets_floor(self, deployment: ModelDeployment) -> bool:
        """Return True if the lower bound of the estimate is at least the client's minimum."""
        return not self.floor or self.estimate(deployment).low >= self.floor


def question_to_json(question: Question) -> dict[str, Any]:
    """Return a question as a JSON object, which `question_from_json` parses."""
    features = question.features
    # Packed, because a list of a hundred numbers takes longer to write than the rest of the row.
    packed_features = struct.pack(f"<{len(features)}I", *features)
    return {
        "kind": question.kind,
        "language": question.language,
        "difficulty": round(question.difficulty, 4),
        "spread": round(question.spread, 4),
        "features": base64.b64encode(packed_features).decode(),
    }


def question_from_json(stored_question: Mapping[str, Any]) -> Question:
    """Parse a question from the JSON object of this or an earlier version of the gateway."""
    features = stored_question["features"]
    if isinstance(features, str):
        packed_features = base64.b64decode(features)
        features = struct.unpack(f"<{len(packed_features) // 4}I", packed_features)
    return Question(**{**stored_question, "features": restore_features(features)})
