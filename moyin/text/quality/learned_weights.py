"""Learns one weight per feature from one tenant's signals about one model.

A weight is the mean of a normal distribution, which is 0 before any signal, so that the estimate
then follows public scores alone. Each signal moves the weights of its question's features by an
extended Kalman filter with a diagonal covariance. That is logistic regression that learns from one
signal at a time and tracks its own uncertainty.

The weight `WORD_TRUST` belongs to no feature. It scales the weights of all words, because the topic
matters more for some models than for others. Each new signal shows if the weights of its words
predicted it, and so how far they can be trusted.

Information is additive: replicas that learned from different signals are merged by addition.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
import zlib
from dataclasses import dataclass, field
from operator import itemgetter, mul
from typing import Any

from moyin.text.quality.question import (
    FEATURE_COUNT,
    FIRST_MEANING_FEATURE,
    FIRST_MEANING_WEIGHT,
    FIRST_WORD_FEATURE,
    FORMULA_FEATURE,
    KINDS,
    MEANING_DIMENSIONS,
    MEANING_SCALE,
    MEANING_STEPS,
    SHAPE_FEATURES,
)

_DAY = 86_400.0
WORD_TRUST = FIRST_WORD_FEATURE - 2  # the number of the weight that scales the weights of all words


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightSpreads:
    """The standard deviations of weights before any signal.

    Attributes:
        general: the deviation of the model's general weight.
        shape: the deviation for length, digits, letters, list items and lines.
        meaning: the deviation for each dimension of an embedder's unit vector.
        trust: the deviation of the factor that scales the weights of words; the factor starts at 1.
    """

    general: float = 1.1
    kind: float = 0.4
    language: float = 0.4
    shape: float = 0.2
    formulae: float = 0.6
    meaning: float = 0.3
    words: float = 0.7
    trust: float = 0.3

    def compute_precisions(self) -> list[float]:
        """Return the precision (inverse variance) of each feature's weight."""
        spreads_by_end = (
            (16, self.general),
            (48, self.kind),
            (80, self.language),
            (FORMULA_FEATURE, self.shape),
            (FIRST_MEANING_WEIGHT, self.formulae),
            (FIRST_MEANING_WEIGHT + MEANING_DIMENSIONS, self.meaning),
            (WORD_TRUST, self.formulae),
            (WORD_TRUST + 1, self.trust),
            (FIRST_WORD_FEATURE, self.formulae),
            (FEATURE_COUNT, self.words),
        )
        return [spread**-2 for spread in _expand_by_feature(spreads_by_end)]


# The uncertainty of an estimate starts at the spread of the questions of a kind. `WeightSpreads`
# has a smaller ``kind``, because weights that few signals move far rank questions worse. Both
# shrink in the same way.
_UNCERTAINTY_SPREADS = ((16, 1.1), (48, 1.0), (FEATURE_COUNT, 1.0))
# Half-lives in seconds. They are longer for words, because models change more often than topics.
_HALF_LIVES = (
    (FIRST_MEANING_WEIGHT, 10 * _DAY),
    (FIRST_MEANING_WEIGHT + MEANING_DIMENSIONS, 30 * _DAY),
    (FIRST_WORD_FEATURE, 10 * _DAY),
    (FEATURE_COUNT, 30 * _DAY),
)
_FADE_INTERVAL = _DAY / 4  # weights fade only at this interval, because all of them change
_MIN_TRUST, _MAX_TRUST = -1.0, 2.0  # 1 + trust scales words: from 0 to 3 times
_STORED_ROW = struct.Struct("<Hff")  # feature, mean, information
_MAX_BYTES = FEATURE_COUNT * _STORED_ROW.size


def _expand_by_feature(values_by_end: tuple[tuple[int, float], ...]) -> list[float]:
    values: list[float] = []
    for end, value in values_by_end:
        values.extend([value] * (end - len(values)))
    return values


_PRECISION = WeightSpreads().compute_precisions()
_UNCERTAINTY_PRECISION = [spread**-2 for spread in _expand_by_feature(_UNCERTAINTY_SPREADS)]
_HALF_LIFE = _expand_by_feature(_HALF_LIVES)
_MEANING_WEIGHTS = tuple(range(FIRST_MEANING_WEIGHT, FIRST_MEANING_WEIGHT + MEANING_DIMENSIONS))


def _clamp_trust(trust: float) -> float:
    return max(_MIN_TRUST, min(trust, _MAX_TRUST))


def _split_features(features: tuple[int, ...]) -> tuple[tuple[int, ...], list[float]]:
    """Split a question's features into the numbers of its shape and words, and its embedding.

    Returns:
        The feature numbers; and the decoded embedding, which is empty if the question has none.
    """
    if features[-1] < FIRST_MEANING_FEATURE:
        return features, []
    first_meaning_index = next(
        index for index, number in enumerate(features) if number >= FIRST_MEANING_FEATURE
    )
    embedding = [0.0] * MEANING_DIMENSIONS
    for number in features[first_meaning_index:]:
        dimension, step = divmod(number - FIRST_MEANING_FEATURE, MEANING_STEPS)
        embedding[dimension] = (step - MEANING_STEPS // 2) / MEANING_SCALE
    return features[:first_meaning_index], embedding


class WeightReader:
    """Sums the weights of one question's features, for several models one after another."""

    __slots__ = ("_meaning", "_scale", "_shape", "_words")

    def __init__(self, features: tuple[int, ...]) -> None:
        features, self._meaning = _split_features(features)
        word_features = features[SHAPE_FEATURES:]
        # An itemgetter of one number returns no tuple, but a text with words has more features.
        self._words = itemgetter(*word_features) if len(word_features) > 1 else None
        self._scale = 1.0 / math.sqrt(max(len(word_features), 1))
        self._shape = itemgetter(*features[:SHAPE_FEATURES])

    def compute_residual(self, mean: list[float]) -> float:
        """Return the logits by which the tenant's signals move the estimate for the question.

        Args:
            mean: the weights of a model, from `LearnedWeights.mean`.
        """
        logits: float = sum(self._shape(mean))
        if self._words is not None:
            logits += self._scale * (1.0 + mean[WORD_TRUST]) * sum(self._words(mean))
        if self._meaning:
            weights = mean[FIRST_MEANING_WEIGHT : FIRST_MEANING_WEIGHT + MEANING_DIMENSIONS]
            logits += sum(map(mul, self._meaning, weights))
        return logits


@dataclass(slots=True)
class LearnedWeights:
    """A tenant's learned weights for one model.

    Attributes:
        mean: the weight in logits of each of the `FEATURE_COUNT` features.
        information: the precision that signals added to each feature's weight.
        counts: the weighted number of signals by kind of request; old signals count less.
        faded_at: the Unix time at which `fade` last reduced the weights.
    """

    mean: list[float] = field(default_factory=lambda: [0.0] * FEATURE_COUNT)
    information: dict[int, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    faded_at: float = 0.0

    def compute_remaining_variance(self, feature: int) -> float:
        """Return the share of a feature's initial variance that remains: 1 before any signal."""
        prior_precision = _UNCERTAINTY_PRECISION[feature]
        return prior_precision / (prior_precision + self.information.get(feature, 0.0))

    def learn(
        self,
        features: tuple[int, ...],
        error: float,
        slope: float,
        weight: float,
        bounds: tuple[float, float],
    ) -> float:
        """Move the weights of ``features`` so that the expected score approaches the observed one.

        Args:
            features: the features of the question that the signal is about.
            error: the observed score minus the expected score.
            slope: the derivative of the expected score by its logit, which is also the precision
                that a signal of weight 1 adds.
            weight: the weight of the signal, from 0 to 1.
            bounds: the lowest (negative) and highest logits by which the estimate may move.

        Returns:
            The logits by which the estimate of the question moved.
        """
        features, embedding = _split_features(features)
        word_count = len(features) - SHAPE_FEATURES
        scale = 1.0 / math.sqrt(max(word_count, 1))
        word_sum = scale * sum(self.mean[feature] for feature in features[SHAPE_FEATURES:])
        shares = [1.0] * SHAPE_FEATURES + [scale * (1.0 + self.mean[WORD_TRUST])] * word_count
        if embedding:
            features += _MEANING_WEIGHTS
            shares += embedding
        features += (WORD_TRUST,)
        shares.append(word_sum)
        information_by_feature = self.information
        gains = [
            share / (_PRECISION[feature] + information_by_feature.get(feature, 0.0))
            for feature, share in zip(features, shares, strict=True)
        ]
        variance = sum(gain * share for gain, share in zip(gains, shares, strict=True))
        information = weight * slope
        proposed_shift = weight * error / (1.0 + information * variance) * variance
        shift = max(bounds[0], min(proposed_shift, bounds[1]))
        if proposed_shift:
            # If the bounds reduce the move, the certainty that the signal adds is reduced alike.
            information *= shift / proposed_shift
        step = shift / variance
        # The product of words and trust moves the estimate further if both grow.
        actual_shift = shift + step * gains[-1] * step * scale * sum(
            gains[SHAPE_FEATURES : SHAPE_FEATURES + word_count]
        )
        shift = max(bounds[0], min(actual_shift, bounds[1]))
        if shift != actual_shift:
            step *= shift / actual_shift
        for feature, share, gain in zip(features, shares, gains, strict=True):
            self.mean[feature] += step * gain
            information_by_feature[feature] = (
                information_by_feature.get(feature, 0.0) + information * share * share
            )
        self.mean[WORD_TRUST] = _clamp_trust(self.mean[WORD_TRUST])
        return shift

    def count_signal(self, kind: str, weight: float) -> None:
        """Add a signal of ``weight`` to the count of ``kind``."""
        self.counts[kind] = self.counts.get(kind, 0.0) + weight

    def fade(self, now: float) -> None:
        """Make old signals count less: reduce weights and information by their half-lives.

        Args:
            now: the current Unix time. Nothing changes if they were reduced only recently.
        """
        elapsed_seconds = now - self.faded_at
        if not self.information:
            self.faded_at = max(now, self.faded_at)
        if elapsed_seconds < _FADE_INTERVAL or not self.information:
            return
        self.faded_at = now
        for feature, information in self.information.items():
            fade_factor = 0.5 ** (elapsed_seconds / _HALF_LIFE[feature])
            remaining_information, prior_precision = information * fade_factor, _PRECISION[feature]
            # The product of mean and precision fades like the information, as if the signal had
            # been weaker.
            self.mean[feature] *= (
                fade_factor
                * (prior_precision + information)
                / (prior_precision + remaining_information)
            )
            self.information[feature] = remaining_information
        fade_factor = 0.5 ** (elapsed_seconds / _HALF_LIFE[0])
        self.counts = {kind: count * fade_factor for kind, count in self.counts.items()}

    def merge_with(
        self, other: LearnedWeights, base: LearnedWeights | None = None
    ) -> LearnedWeights:
        """Return the combination of these weights and another replica's weights.

        Args:
            base: the weights from which both started, so that they are counted only once.
        """
        base_weights = base or LearnedWeights()
        merged_weights = LearnedWeights(faded_at=max(self.faded_at, other.faded_at))
        for feature in sorted(self.information.keys() | other.information.keys()):
            prior_precision = _PRECISION[feature]
            weighted_mean, total_information = 0.0, 0.0
            for sign, weights in ((1.0, self), (1.0, other), (-1.0, base_weights)):
                information = weights.information.get(feature, 0.0)
                total_information += sign * information
                weighted_mean += sign * weights.mean[feature] * (prior_precision + information)
            merged_weights.information[feature] = max(total_information, 0.0)
            merged_weights.mean[feature] = weighted_mean / (
                prior_precision + max(total_information, 0.0)
            )
        merged_weights.mean[WORD_TRUST] = _clamp_trust(merged_weights.mean[WORD_TRUST])
        for kind in KINDS:
            count = self.counts.get(kind, 0.0) + other.counts.get(kind, 0.0)
            if (count := count - base_weights.counts.get(kind, 0.0)) > 0:
                merged_weights.counts[kind] = count
        return merged_weights

    def to_json(self) -> dict[str, Any]:
        """Encode the weights as a JSON value of at most about 110 kB."""
        rows = b"".join(
            _STORED_ROW.pack(feature, self.mean[feature], information)
            for feature, information in sorted(self.information.items())
        )
        return {
            "at": self.faded_at,
            "counts": dict(self.counts),
            "weights": base64.b64encode(zlib.compress(rows)).decode(),
        }

    @classmethod
    def from_json(cls, stored_weights: Any) -> LearnedWeights:
        """Decode weights that `to_json` encoded.

        Raises:
            ValueError: ``stored_weights`` is malformed.
        """
        try:
            faded_at, counts = float(stored_weights["at"]), stored_weights["counts"]
            packed_weights = base64.b64decode(stored_weights["weights"], validate=True)
            rows = zlib.decompressobj().decompress(packed_weights, _MAX_BYTES)
            weights = cls(
                faded_at=faded_at, counts={str(kind): float(counts[kind]) for kind in counts}
            )
            for feature, mean, information in _STORED_ROW.iter_unpack(rows):
                if not math.isfinite(mean) or not 0.0 <= information < math.inf:
                    raise ValueError(f"the weight of feature {feature} is not a finite number")
                weights.mean[feature], weights.information[feature] = mean, information
        except (KeyError, TypeError, IndexError, zlib.error, binascii.Error, struct.error) as error:
            raise ValueError(f"the stored weights are malformed: {error!r}") from error
        return weights
