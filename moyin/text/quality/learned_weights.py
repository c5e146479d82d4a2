"""What one tenant's signals taught about one model: a weight per feature, and how sure it is.

A weight is the mean of a normal distribution around what the table says (0). Each signal moves the
weights of its question's features, by an extended Kalman filter with a diagonal covariance: logistic
regression that learns from one signal at a time and knows how much it has learned.

One weight, `TRUST`, is of no feature: it learns by how much the words together are to count. Each signal
comes to weights that did not know it, so whether they pointed the right way shows how far the next ones
may be followed. Some models' answers depend more on what is asked about than others'.

Information adds up: replicas that learned different signals are merged by addition.
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
    FINE,
    FIRST_MEANING,
    FIRST_WORD,
    FORMULAE,
    KINDS,
    MEANINGS,
    SHAPES,
    SIZE,
    STEPS,
)

__all__ = ["LearnedWeights", "Reader", "Spreads"]

_DAY = 86_400.0
TRUST = FIRST_WORD - 2  # the weight by which the words count more than once, or less


@dataclass(frozen=True, kw_only=True, slots=True)
class Spreads:
    """Standard deviations of weights before any signal.

    Attributes:
        general: of the model in general.
        shape: of length, digits, letters, steps and lines.
        meaning: of each dimension of an embedder's vector of unit length.
        trust: of how often the words count: once, before any signal.
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
            (FORMULAE, self.shape),
            (FIRST_MEANING, self.formulae),
            (FIRST_MEANING + DIMENSIONS, self.meaning),
            (TRUST, self.formulae),
            (TRUST + 1, self.trust),
            (FIRST_WORD, self.formulae),
            (SIZE, self.words),
        )
        return [spread**-2 for spread in _by_feature(steps)]


# What is doubted about a kind is as wide as questions of a kind are spread. The weight's spread is
# narrower, since one that few signals move far orders questions worse; but as many signals show
# whether a model may be trusted with a kind.
_DOUBTED = ((16, 1.1), (48, 1.0), (SIZE, 1.0))
# Seconds in which what was learned counts half. Models change at once, topics seldom.
_HALF_LIVES = (
    (FIRST_MEANING, 10 * _DAY),
    (FIRST_MEANING + DIMENSIONS, 30 * _DAY),
    (FIRST_WORD, 10 * _DAY),
    (SIZE, 30 * _DAY),
)
# Forgetting touches every weight, so it waits until there is something to forget.
_FORGET_EVERY = _DAY / 4
_LEAST_TRUST, _MOST_TRUST = -1.0, 2.0  # words count not at all, or three times
_ROW = struct.Struct("<Hff")  # feature, mean, information
_MOST_BYTES = SIZE * _ROW.size


def _by_feature(steps: tuple[tuple[int, float], ...]) -> list[float]:
    values: list[float] = []
    for end, value in steps:
        values.extend([value] * (end - len(values)))
    return values


_PRECISION = Spreads().precision()
_DOUBTED_PRECISION = [spread**-2 for spread in _by_feature(_DOUBTED)]
_HALF_LIFE = _by_feature(_HALF_LIVES)
_DIMENSIONS = tuple(range(FIRST_MEANING, FIRST_MEANING + DIMENSIONS))


def _within(trust: float) -> float:
    return max(_LEAST_TRUST, min(trust, _MOST_TRUST))


def _apart(features: tuple[int, ...]) -> tuple[tuple[int, ...], list[float]]:
    """Split features into those of shape and words, and the values of the dimensions of meaning."""
    if features[-1] < MEANINGS:
        return features, []
    first = next(at for at, number in enumerate(features) if number >= MEANINGS)
    values = [0.0] * DIMENSIONS
    for number in features[first:]:
        dimension, step = divmod(number - MEANINGS, STEPS)
        values[dimension] = (step - STEPS // 2) / FINE
    return features[:first], values


class Reader:
    """Reads the weights of one question's features; made once for several memories."""

    __slots__ = ("_meaning", "_scale", "_shape", "_words")

    def __init__(self, features: tuple[int, ...]) -> None:
        features, self._meaning = _apart(features)
        words = features[SHAPES:]
        # An itemgetter of a single number would return it bare; no text has one feature only.
        self._words = itemgetter(*words) if len(words) > 1 else None
        self._scale = 1.0 / math.sqrt(max(len(words), 1))
        self._shape = itemgetter(*features[:SHAPES])

    def residual(self, mean: list[float]) -> float:
        """Return the logits to add to what the table says."""
        logits: float = sum(self._shape(mean))
        if self._words is not None:
            logits += self._scale * (1.0 + mean[TRUST]) * sum(self._words(mean))
        if self._meaning:
            weights = mean[FIRST_MEANING : FIRST_MEANING + DIMENSIONS]
            logits += sum(map(mul, self._meaning, weights))
        return logits


@dataclass(slots=True)
class LearnedWeights:
    """A tenant's weights for one model.

    Attributes:
        mean: by feature, `SIZE` of them, in logits.
        information: by feature, what signals added to the precision of the prior.
        counts: signals by kind; they fade like the weights of the shape.
        at: seconds since 1970, when it was last made to forget.
    """

    mean: list[float] = field(default_factory=lambda: [0.0] * SIZE)
    information: dict[int, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    at: float = 0.0

    def doubt(self, feature: int) -> float:
        """Share of the first doubt about a feature that is left: 1 before any signal, towards 0."""
        prior = _DOUBTED_PRECISION[feature]
        return prior / (prior + self.information.get(feature, 0.0))

    def learn(
        self,
        features: tuple[int, ...],
        error: float,
        slope: float,
        weight: float,
        bounds: tuple[float, float],
    ) -> float:
        """Move the weights of ``features`` so that the expected answer comes nearer to the seen one.

        Args:
            error: score minus expectation.
            slope: how much information a signal carries, at this expectation.
            weight: of the signal, 0 to 1.
            bounds: logits by which this question's own estimate may move, down and up.

        Returns:
            The logits by which it moved.
        """
        features, meaning = _apart(features)
        words = len(features) - SHAPES
        scale = 1.0 / math.sqrt(max(words, 1))
        told = scale * sum(self.mean[feature] for feature in features[SHAPES:])
        shares = [1.0] * SHAPES + [scale * (1.0 + self.mean[TRUST])] * words
        if meaning:
            features += _DIMENSIONS
            shares += meaning
        features += (TRUST,)
        shares.append(told)
        known = self.information
        pulls = [
            share / (_PRECISION[feature] + known.get(feature, 0.0))
            for feature, share in zip(features, shares, strict=True)
        ]
        variance = sum(pull * share for pull, share in zip(pulls, shares, strict=True))
        information = weight * slope
        wanted = weight * error / (1.0 + information * variance) * variance
        moved = max(bounds[0], min(wanted, bounds[1]))
        if wanted:
            # A signal that may move little may not make anything certain either.
            information *= moved / wanted
        step = moved / variance
        # Words and the trust in them multiply: where both grow, the estimate moves further.
        both = moved + step * pulls[-1] * step * scale * sum(pulls[SHAPES : SHAPES + words])
        moved = max(bounds[0], min(both, bounds[1]))
        if moved != both:
            step *= moved / both
        for feature, share, pull in zip(features, shares, pulls, strict=True):
            self.mean[feature] += step * pull
            known[feature] = known.get(feature, 0.0) + information * share * share
        self.mean[TRUST] = _within(self.mean[TRUST])
        return moved

    def count(self, kind: str, weight: float) -> None:
        """Note that a signal of ``weight`` about ``kind`` was learned."""
        self.counts[kind] = self.counts.get(kind, 0.0) + weight

    def forget(self, now: float) -> None:
        """Let what was learned fade towards the table, by the time since this was last done."""
        passed = now - self.at
        if not self.information:
            self.at = max(now, self.at)
        if passed < _FORGET_EVERY or not self.information:
            return
        self.at = now
        for feature, known in self.information.items():
            fade = 0.5 ** (passed / _HALF_LIFE[feature])
            left, prior = known * fade, _PRECISION[feature]
            # Mean times precision fades as information does: forgetting is unlearning.
            self.mean[feature] *= fade * (prior + known) / (prior + left)
            self.information[feature] = left
        fade = 0.5 ** (passed / _HALF_LIFE[0])
        self.counts = {kind: count * fade for kind, count in self.counts.items()}

    def merged(self, other: LearnedWeights, base: LearnedWeights | None = None) -> LearnedWeights:
        """Return what both learned together; ``base``: what both started from, counted once."""
        start = base or LearnedWeights()
        result = LearnedWeights(at=max(self.at, other.at))
        for feature in sorted(self.information.keys() | other.information.keys()):
            prior = _PRECISION[feature]
            pushes, total = 0.0, 0.0
            for sign, part in ((1.0, self), (1.0, other), (-1.0, start)):
                known = part.information.get(feature, 0.0)
                total += sign * known
                pushes += sign * part.mean[feature] * (prior + known)
            result.information[feature] = max(total, 0.0)
            result.mean[feature] = pushes / (prior + max(total, 0.0))
        result.mean[TRUST] = _within(result.mean[TRUST])
        for kind in KINDS:
            count = self.counts.get(kind, 0.0) + other.counts.get(kind, 0.0)
            if (count := count - start.counts.get(kind, 0.0)) > 0:
                result.counts[kind] = count
        return result

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value of at most some 110 kB."""
        rows = b"".join(
            _ROW.pack(feature, self.mean[feature], known)
            for feature, known in sorted(self.information.items())
        )
        return {
            "at": self.at,
            "counts": dict(self.counts),
            "weights": base64.b64encode(zlib.compress(rows)).decode(),
        }

    @classmethod
    def from_json(cls, value: Any) -> LearnedWeights:
        """Return the memory that `to_json` wrote.

        Raises:
            ValueError: ``value`` is something else.
        """
        try:
            at, counts = float(value["at"]), value["counts"]
            packed = base64.b64decode(value["weights"], validate=True)
            rows = zlib.decompressobj().decompress(packed, _MOST_BYTES)
            memory = cls(at=at, counts={str(kind): float(counts[kind]) for kind in counts})
            for feature, mean, known in _ROW.iter_unpack(rows):
                if not math.isfinite(mean) or not 0.0 <= known < math.inf:
                    raise ValueError(f"weight {feature} is not a finite number")
                memory.mean[feature], memory.information[feature] = mean, known
        except (KeyError, TypeError, IndexError, zlib.error, binascii.Error, struct.error) as error:
            raise ValueError(f"not a memory of a model: {error}") from error
        return memory
