"""Splits texts of jobs into words, and finds jobs by these words.

The words of a job are one row of `job_texts`, which is indexed by FTS5 in SQLite and by GIN in
PostgreSQL. Each word begins with a digest of the job's owner, so that a search only reads index
entries of that owner, however many jobs other tenants have.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from moyin.store.schema import job_texts

# The maximum size in bytes of a job's searchable text, and of characters in a word.
MAX_TEXT_BYTES = 4_096
_MAX_WORD = 64
# Scripts without spaces between words: kana, Chinese characters, Hangul.
_UNSPACED = "\u3005\u3007\u3041-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff"
_RUN = re.compile(rf"(?P<unspaced>[{_UNSPACED}]+)|[^\W_{_UNSPACED}]+")
_OWNER_DIGITS = 6
_MATCHING = {
    "sqlite": sa.text(
        "SELECT job_id FROM job_texts WHERE number IN "
        "(SELECT rowid FROM job_words WHERE job_words MATCH :query LIMIT :limit)"
    ),
    "postgresql": sa.text(
        "SELECT job_id FROM job_texts WHERE string_to_array(words, ' ') @> :query LIMIT :limit"
    ).bindparams(sa.bindparam("query", type_=ARRAY(sa.Text))),
}


def join_words(owner: str, text: str) -> str:
    """Return the words of a job's text as `job_texts` stores them, or "" if it has none."""
    truncated_text = text.encode(errors="ignore")[:MAX_TEXT_BYTES].decode(errors="ignore")
    return " ".join(_prefix_with_owner(owner, _split_words(truncated_text, for_search=False)))


def find_words(search: str) -> list[str]:
    """Return the words of a search, all of which must occur in the text of a matching job."""
    return list(dict.fromkeys(_split_words(search, for_search=True)))


def build_word_condition(job_id: Any, owner: str, search: str, dialect: str) -> Any:
    """Return the SQL condition that the text of a job matches a search.

    Args:
        job_id: the column with the job's id.
    """
    find_position = sa.func.instr if dialect == "sqlite" else sa.func.strpos
    padded_words = sa.literal(" ").concat(job_texts.c.words).concat(" ")
    words = _prefix_with_owner(owner, find_words(search))
    matches = [find_position(padded_words, f" {word} ") > 0 for word in words]
    return sa.exists().where(job_texts.c.job_id == job_id, *matches)


def find_job_ids(connection: sa.Connection, owner: str, search: str, limit: int) -> Sequence[str]:
    """Return the ids of at most ``limit`` jobs whose texts match a search, in any order.

    A few ids may be of other owners with the same digest; the caller must filter them out.
    """
    words, dialect = _prefix_with_owner(owner, find_words(search)), connection.dialect.name
    query: str | list[str] = words
    if dialect == "sqlite":
        query = " AND ".join(f'"{word}"' for word in words)
    else:
        # The planner may expect so many matches that it would read the whole table for a few.
        connection.execute(sa.text("SET LOCAL enable_seqscan = off"))
        connection.execute(sa.text("SET LOCAL enable_indexscan = off"))
    result = connection.execute(_MATCHING[dialect], {"query": query, "limit": limit})
    ids = result.scalars().all()
    if dialect != "sqlite":
        connection.execute(sa.text("SET LOCAL enable_indexscan = on"))
    return ids


def _split_words(text: str, *, for_search: bool) -> Iterator[str]:
    """Yield the words of a text in lower case.

    In scripts without spaces between words, each pair of adjacent characters counts as a word.

    Args:
        for_search: False for a text that is stored, in which each character of such a script
            counts as a word, too, so that a search for a single character finds the text.
    """
    for match in _RUN.finditer(unicodedata.normalize("NFKC", text).casefold()):
        characters = match[0]
        if match["unspaced"] is None:
            yield characters[:_MAX_WORD]
            continue
        if len(characters) == 1 or not for_search:
            yield from characters
        yield from (characters[start : start + 2] for start in range(len(characters) - 1))


def _prefix_with_owner(owner: str, words: Iterator[str] | Sequence[str]) -> list[str]:
    prefix = hashlib.sha256(owner.encode()).hexdigest()[:_OWNER_DIGITS]
    return [prefix + word for word in dict.fromkeys(words)]
