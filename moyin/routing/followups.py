"""What clients do after an answer, as signals of its quality: nobody has to be asked for them.

A client that asks the same again, edits its last message, says that the answer is wrong, or turns to a
better model by name, was probably not served well. One that goes on in the conversation probably was.
Each is weak evidence, so each weighs little, and counts once per answer.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moyin.protocols.dialect import Call
from moyin.protocols.turns import Turn
from moyin.quality.estimator import Signal
from moyin.quality.question import Question
from moyin.routing.answer import Asker
from moyin.routing.choice import Candidate
from moyin.routing.learning import Learning
from moyin.routing.quality import RequestQuality
from moyin.routing.shortlist import Shortlist

__all__ = ["FollowUps"]

_CAPACITY = 20_000
_SECONDS = 300.0
# Sooner, a program draws several answers to one prompt; nobody has read the first by then.
_SOONEST = 2.0
# A short first message, such as "hello", is sent by many people of one key.
_SHORT = 40
# Characters at each end of a long text that tell it from others.
_ENDS = 2_000
_OPENING = 120
_STRONGER = 0.5  # logits
_COMPLAINT = re.compile(
    r"\b(?:(?:that|this|it)(?:'s| is| was)(?: still)? (?:wrong|incorrect|false)|not (?:correct|right)"
    r"|(?:does|did)(?:n't| not) (?:work|compile)|you(?:'re| are) wrong|still wrong|try again"
    r"|das ist falsch|stimmt nicht|funktioniert nicht|geht nicht"
    r"|c'est faux|ne marche pas|est[aá] mal|no funciona)\b|違います|違う|間違",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _Sign:
    source: str
    score: float
    weight: float


_REGENERATED = _Sign("regenerated", 0.2, 0.3)
_EDITED = _Sign("edited", 0.3, 0.2)
_CORRECTED = _Sign("corrected", 0.0, 0.5)
_SWITCHED = _Sign("switched", 0.1, 0.5)
_CONTINUED = _Sign("continued", 0.9, 0.05)


# Not frozen: one is made per request, and freezing doubles what that costs.
@dataclass(slots=True)
class _Answered:
    """An answer that a client may come back to."""

    owner: str
    request_id: str
    model: str
    ability: float
    question: Question
    p_good: float
    at: float


class FollowUps:
    """Remembers answers for some minutes, by keyed hashes of the conversation; no text is kept.

    Each replica remembers its own answers: a follow-up that reaches another replica is not noticed.
    """

    def __init__(self, learning: Learning, *, clock: Callable[[], float] = time.time) -> None:
        self._learning = learning
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._answers: OrderedDict[bytes, _Answered] = OrderedDict()
        # By conversation, what was last said in it.
        self._newest: OrderedDict[bytes, bytes] = OrderedDict()

    def noticed(self, asker: Asker, call: Call, shortlist: Shortlist) -> bool:
        """Look whether a request follows up an answer, before it is answered itself; returns whether
        that answer did not help."""
        if not self._answers:
            return False
        said = _said(call.turns())
        if said is None:
            return False
        sign, earlier = self._sign(asker, said, shortlist)
        if sign is None or earlier is None:
            return False
        signal = Signal(
            model=earlier.model,
            question=earlier.question,
            score=sign.score,
            weight=sign.weight,
            source=sign.source,
            key=asker.key_id,
            at=self._clock(),
        )
        self._learning.observed(earlier.owner, earlier.request_id, signal, p_good=earlier.p_good)
        return sign is not _CONTINUED

    def answered(
        self, asker: Asker, call: Call, quality: RequestQuality, chosen: Candidate
    ) -> None:
        """Remember an answer that begins."""
        said, forecast = _said(call.turns()), chosen.forecast
        if said is None or forecast is None or forecast.estimate is None:
            return
        if len(said) == 1 and len(said[0]) < _SHORT:
            return
        ability = chosen.offer.ability
        place = self._hash(asker, said)
        self._answers[place] = _Answered(
            asker.owner,
            asker.request_id,
            chosen.offer.model.name,
            0.0 if ability is None else ability.mean,
            quality.question,
            forecast.estimate.p,
            self._clock(),
        )
        if len(said) > 1:
            self._newest[self._hash(asker, said[1:])] = place
        for kept in (self._answers, self._newest):
            while len(kept) > _CAPACITY:
                kept.popitem(last=False)

    def _sign(
        self, asker: Asker, said: Sequence[str], shortlist: Shortlist
    ) -> tuple[_Sign | None, _Answered | None]:
        """What the request says of an earlier answer, which is then forgotten."""
        place = self._hash(asker, said)
        if (earlier := self._take(place)) is not None:
            switched = _is_stronger(shortlist, earlier)
            return (_SWITCHED if switched else _REGENERATED), earlier
        if len(said) == 1:
            return None, None
        before = self._hash(asker, said[1:])
        if (earlier := self._take(before)) is not None:
            return (_CORRECTED if _COMPLAINT.search(said[0][:_OPENING]) else _CONTINUED), earlier
        sibling = self._newest.get(before)
        if sibling is not None and (earlier := self._take(sibling)) is not None:
            return _EDITED, earlier
        return None, None

    def _take(self, place: bytes) -> _Answered | None:
        found = self._answers.get(place)
        if found is None or self._clock() - found.at < _SOONEST:
            return None
        del self._answers[place]
        return found if self._clock() - found.at <= _SECONDS else None

    def _hash(self, asker: Asker, said: Sequence[str]) -> bytes:
        """A name for the last two of the user's messages, the newest first."""
        hashed = hashlib.blake2b(key=self._secret, digest_size=16)
        for text in (asker.owner, asker.key_id, *said[:2]):
            ends = text if len(text) <= 2 * _ENDS else f"{text[:_ENDS]}{text[-_ENDS:]}"
            hashed.update(f"{len(text)}:".encode() + ends.encode(errors="surrogatepass"))
        return hashed.digest()


def _said(turns: Sequence[Turn]) -> list[str] | None:
    """The user's last messages, newest first; None where something else came last, such as the
    result of a tool."""
    if not turns or turns[-1][0] != "user":
        return None
    return [text for role, text in reversed(turns) if role == "user"]


def _is_stronger(shortlist: Shortlist, earlier: _Answered) -> bool:
    """Whether the client names a model that is clearly better than the one that answered."""
    if shortlist.chooses_model or not shortlist.contenders:
        return False
    ability = shortlist.contenders[0].offer.ability
    return ability is not None and ability.mean > earlier.ability + _STRONGER
