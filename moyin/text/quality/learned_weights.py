"""Learns one weight per feature from one tenant's signals about one model.

A weight is the mean of a normal distribution around what the table says (0). Each signal moves the
weights of its question's features by an extended Kalman filter with a diagonal covariance. That is
logistic regression that learns from one signal at a time and tracks its own uncertainty.

One weight, `WORD_TRUST`, belongs to no feature: it scales how much the words together count. Each
signal arrives at weights that did not know it. So whether they pointed in the right direction shows
how far to trust the next ones. Some models' answers depend more on the topic than others'.

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
    DIMENSIONS,
    FEATURE_COUNT,
    FIRST_MEANING,
    FIRST_MEANING_VALUE,
    FIRST_WORD,
    FORMULA_FEATURE,
    KINDS,
    MEANING_SCALE,
    MEANING_STEPS,
    SHAPE_FEATURES,
)

__all__ = ["LearnedWeights", "Spreads", "WeightReader"]

_DAY = 86_400.0
WORD_TRUST = FIRST_WORD - 2  # the number of the weight that scales all words


@dataclass(frozen=True, kw_only=True, slots=True)
class Spreads:
    """Holds the standard deviations of weights before any signal.

    Attributes:
        general: of the model in general.
        shape: of length, digits, letters, list items and lines.
        meaning: of each dimension of an embedder's unit vector.
        trust: of the factor by which words count, which starts at 1.
    """

    general: float = 1.1
    kind: float = 0.4
    language: float = 0.4
    shape: float = 0.2
    formulae: float = 0.6
    meaning: float = 0.3
    words: float = 0.7
    trust: float = 0.3

    def precision(self) -> list[float]:
        """Return the precision of each feature's weight."""
        steps = (
            (16, self.general),
            (48, self.kind),
            (80, self.language),
            (FORMULA_FEATURE, self.shape),
            (FIRST_MEANING, self.formulae),
            (FIRST_MEANING + DIMENSIONS, self.meaning),
            (WORD_TRUST, self.formulae),
            (WORD_TRUST + 1, self.trust),
            (FIRST_WORD, self.formulae),
            (FEATURE_COUNT, self.words),
        )
        return [spread**-2 for spread in _by_feature(steps)]


# The uncertainty about a kind is as wide as the questions of a kind are spread. The spread of its
# weight is narrower, because a weight that few signals move far ranks questions worse. Both take the
# same number of signals to settle.
_UNCERTAINTY_SPREADS = ((16, 1.1), (48, 1.0), (FEATURE_COUNT, 1.0))
# Half-lives in seconds. Models are replaced often, topics rarely change.
_HALF_LIVES = (
    (FIRST_MEANING, 10 * _DAY),
    (FIRST_MEANING + DIMENSIONS, 30 * _DAY),
    (FIRST_WORD, 10 * _DAY),
    (FEATURE_COUNT, 30 * _DAY),
)
# Fading touches every weight, so it runs only at intervals.
_FORGET_INTERVAL = _DAY / 4
_MIN_TRUST, _MAX_TRUST = -1.0, 2.0  # words count from not at all to three times
_ROW = struct.Struct("<Hff")  # feature, mean, information
_MAX_BYTES = FEATURE_COUNT * _ROW.size


def _by_feature(steps: tuple[tuple[int, float], ...]) -> list[float]:
    values: list[float] = []
    for end, value in steps:
        values.extend([value] * (end - len(values)))
    return values


_PRECISION = Spreads().precision()
_UNCERTAINTY_PRECISION = [spread**-2 for spread in _by_feature(_UNCERTAINTY_SPREADS)]
_HALF_LIFE = _by_feature(_HALF_LIVES)
_DIMENSIONS = tuple(range(FIRST_MEANING, FIRST_MEANING + DIMENSIONS))


def _clamp_trust(trust: float) -> float:
    return max(_MIN_TRUST, min(trust, _MAX_TRUST))


def _split_features(features: tuple[int, ...]) -> tuple[tuple[int, ...], list[float]]:
    """Split features into those of shape and words, and the values of meaning."""
    if features[-1] < FIRST_MEANING_VALUE:
        return features, []
    first = next(at for at, number in enumerate(features) if number >= FIRST_MEANING_VALUE)
    values = [0.0] * DIMENSIONS
    for number in features[first:]:
        dimension, step = divmod(number - FIRST_MEANING_VALUE, MEANING_STEPS)
        values[dimension] = (step - MEANING_STEPS // 2) / MEANING_SCALE
    return features[:first], values


class WeightReader:
    """Reads the weights of one question's features; reused for several models."""

    __slots__ = ("_meaning", "_scale", "_shape", "_words")

    def __init__(self, features: tuple[int, ...]) -> None:
        features, self._meaning = _split_features(features)
        words = features[SHAPE_FEATURES:]
        # An itemgetter of a single number returns no tuple; texts with words have more than one.
        self._words = itemgetter(*words) if len(words) > 1 else None
        self._scale = 1.0 / math.sqrt(max(len(words), 1))
        self._shape = itemgetter(*features[:SHAPE_FEATURES])

    def residual(self, mean: list[float]) -> float:
        """Return the logits to add to the table's estimate."""
        logits: float = sum(self._shape(mean))
        if self._words is not None:
            logits += self._scale * (1.0 + mean[WORD_TRUST]) * sum(self._words(mean))
        if self._meaning:
            weights = mean[FIRST_MEANING : FIRST_MEANING + DIMENSIONS]
            logits += sum(map(mul, self._meaning, weights))
        return logits


@dataclass(slots=True)
class LearnedWeights:
    """Holds a tenant's weights for one model.

    Attributes:
        mean: by feature, `FEATURE_COUNT` of them, in logits.
        information: by feature, what signals added to the precision of the prior.
        counts: signals by kind; they fade like the weights of the shape.
        at: time of the last fading, in seconds since 1970.
    """

    mean: list[float] = field(default_factory=lambda: [0.0] * FEATURE_COUNT)
    information: dict[int, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    at: float = 0.0

    def uncertainty(self, feature: int) -> float:
        """Return the remaining share of a feature's initial variance, from 1 towards 0."""
        prior = _UNCERTAINTY_PRECISION[feature]
        return prior / (prior + self.information.get(feature, 0.0))

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
            error: score minus expectation.
            slope: information that a signal carries at this expectation.
            weight: of the signal, 0 to 1.
            bounds: logits by which this question's own estimate may move, down and up.

        Returns:
            The logits by which it moved.
        """
        features, meaning = _split_features(features)
        words = len(features) - SHAPE_FEATURES
        scale = 1.0 / math.sqrt(max(words, 1))
        word_sum = scale * sum(self.mean[feature] for feature in features[SHAPE_FEATURES:])
        shares = [1.0] * SHAPE_FEATURES + [scale * (1.0 + self.mean[WORD_TRUST])] * words
        if meaning:
            features += _DIMENSIONS
            shares += meaning
        features += (WORD_TRUST,)
        shares.append(word_sum)
        known_information = self.information
        gains = [
            share / (_PRECISION[feature] + known_information.get(feature, 0.0))
            for feature, share in zip(features, shares, strict=True)
        ]
        variance = sum(gain * share for gain, share in zip(gains, shares, strict=True))
        information = weight * slope
        proposed = weight * error / (1.0 + information * variance) * variance
        moved = max(bounds[0], min(proposed, bounds[1]))
        if proposed:
            # A signal that may move little must not add much certainty either.
            information *= moved / proposed
        step = moved / variance
        # Words and their trust are multiplied: if both grow, the estimate moves further.
        actual = moved + step * gains[-1] * step * scale * sum(
            gains[SHAPE_FEATURES : SHAPE_FEATURES + words]
        )
        moved = max(bounds[0], min(actual, bounds[1]))
        if moved != actual:
            step *= moved / actual
        for feature, share, gain in zip(features, shares, gains, strict=True):
            self.mean[feature] += step * gain
            known_information[feature] = (
                known_information.get(feature, 0.0) + information * share * share
            )
        self.mean[WORD_TRUST] = _clamp_trust(self.mean[WORD_TRUST])
        return moved

    def count(self, kind: str, weight: float) -> None:
        """Count a signal of ``weight`` about ``kind``."""
        self.counts[kind] = self.counts.get(kind, 0.0) + weight

    def forget(self, now: float) -> None:
        """Let the weights fade towards the table, by the time since the last fading."""
        elapsed = now - self.at
        if not self.information:
            self.at = max(now, self.at)
        if elapsed < _FORGET_INTERVAL or not self.information:
            return
        self.at = now
        for feature, information in self.information.items():
            fade = 0.5 ** (elapsed / _HALF_LIFE[feature])
            remaining, prior = information * fade, _PRECISION[feature]
            # Mean times precision fades like information, which reverses learning.
            self.mean[feature] *= fade * (prior + information) / (prior + remaining)
            self.information[feature] = remaining
        fade = 0.5 ** (elapsed / _HALF_LIFE[0])
        self.counts = {kind: count * fade for kind, count in self.counts.items()}

    def merged(self, other: LearnedWeights, base: LearnedWeights | None = None) -> LearnedWeights:
        """Return what both learned together.

        Args:
            base: what both started from, counted once.
        """
        start = base or LearnedWeights()
        result = LearnedWeights(at=max(self.at, other.at))
        for feature in sorted(self.information.keys() | other.information.keys()):
            prior = _PRECISION[feature]
            weighted_mean, total = 0.0, 0.0
            for sign, part in ((1.0, self), (1.0, other), (-1.0, start)):
                information = part.information.get(feature, 0.0)
                total += sign * information
                weighted_mean += sign * part.mean[feature] * (prior + information)
            result.information[feature] = max(total, 0.0)
            result.mean[feature] = weighted_mean / (prior + max(total, 0.0))
        result.mean[WORD_TRUST] = _clamp_trust(result.mean[WORD_TRUST])
        for kind in KINDS:
            count = self.counts.get(kind, 0.0) + other.counts.get(kind, 0.0)
            if (count := count - start.counts.get(kind, 0.0)) > 0:
                result.counts[kind] = count
        return result

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value of at most about 110 kB."""
        rows = b"".join(
            _ROW.pack(feature, self.mean[feature], information)
            for feature, information in sorted(self.information.items())
        )
        return {
            "at": self.at,
            "counts": dict(self.counts),
            "weights": base64.b64encode(zlib.compress(rows)).decode(),
        }

    @classmethod
    def from_json(cls, value: Any) -> LearnedWeights:
        """Return the weights that `to_json` wrote.

        Raises:
            ValueError: ``value`` is malformed.
        """
        try:
            at, counts = float(value["at"]), value["counts"]
            packed = base64.b64decode(value["weights"], validate=True)
            rows = zlib.decompressobj().decompress(packed, _MAX_BYTES)
            memory = cls(at=at, counts={str(kind): float(counts[kind]) for kind in counts})
            for feature, mean, information in _ROW.iter_unpack(rows):
                if not math.isfinite(mean) or not 0.0 <= information < math.inf:
                    raise ValueError(f"weight {feature} is not a finite number")
                memory.mean[feature], memory.information[feature] = mean, information
        except (KeyError, TypeError, IndexError, zlib.error, binascii.Error, struct.error) as error:
            raise ValueError(f"malformed learned weights: {error}") from error
        return memory
