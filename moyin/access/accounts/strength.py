"""Passwords that are too easy to guess: those of known lists, and what stands in the account itself."""

from __future__ import annotations

import re

from zxcvbn import zxcvbn

from moyin.errors import WeakPassword

__all__ = ["check_strength"]

# Guesses that a password must withstand. Online, an account can be guessed at 7,300 times an hour at most
# (docs/accounts.md): that many take a year and a half.
_LEAST_GUESSES = 10**8
# The estimate takes longer the longer the password is; what is as strong needs no more.
_ESTIMATED = 72
_WORD = re.compile(r"[^\W_]{3,}")
# What is left of a password without the words of the account must be at least so long.
_LEAST_OWN = 6


def check_strength(password: str, *, email: str | None, name: str, field: str) -> None:
    """Refuse a password that guessers try first. Takes some milliseconds.

    Raises:
        WeakPassword: it is on a list of known passwords, follows a pattern, or is like the email or the
            name; naming ``field``.
    """
    words = [word.casefold() for word in _WORD.findall(f"{email or ''} {name}")]
    found = zxcvbn(password[:_ESTIMATED], user_inputs=[*words, *([email] if email else [])])
    if _is_like(password, words):
        reason = "it is like the email or the name."
    elif found["guesses"] < _LEAST_GUESSES:
        reason = found["feedback"]["warning"] or "it follows a pattern that guessers know."
    else:
        return
    raise WeakPassword(
        f"the password is too easy to guess: {reason} Several unrelated words make a good one.",
        field=field,
    )


def _is_like(password: str, words: list[str]) -> bool:
    """Whether the password is made of the account's own words, and hardly anything else."""
    rest = password.casefold()
    for word in sorted(words, key=len, reverse=True):
        rest = rest.replace(word, "")
    return rest != password.casefold() and len(rest) < _LEAST_OWN
