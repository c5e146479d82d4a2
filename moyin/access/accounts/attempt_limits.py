"""Limits how often callers may sign in, sign up, and request mails."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import jwt

from moyin.access.accounts.throttle import Throttle, ThrottleKey

__all__ = ["AttemptLimits", "DeviceTokens", "SignInAttempt"]

_HOUR_SECONDS = 3600
# Mails to one email address in a quarter of an hour.
_MAILS_PER_EMAIL = 5
# Requests for mails, and password resets, from one client address in a quarter of an hour.
_RESETS_PER_ADDRESS = 100
# New players from one client address in an hour.
_REGISTRATIONS_PER_ADDRESS = 30
_ALGORITHM = "HS256"
_AUDIENCE = "moyin-device"
_DEVICE_TOKEN_SECONDS = 180 * 86_400


class DeviceTokens:
    """Issues and reads tokens of devices on which an account has signed in.

    A token grants no access. It only lets the device's attempts be counted separately, so that
    attempts of others at the account do not count against it.
    """

    def __init__(self, signing_key: bytes) -> None:
        self._signing_key = signing_key

    def issue(self, user_id: str) -> str:
        """Return a token for a device on which ``user_id`` has signed in."""
        claims = {
            "aud": _AUDIENCE,
            "sub": user_id,
            "jti": secrets.token_hex(12),
            "exp": int(time.time()) + _DEVICE_TOKEN_SECONDS,
        }
        return jwt.encode(claims, self._signing_key, algorithm=_ALGORITHM)

    def device_id(self, token: str | None, user_id: str) -> str | None:
        """Return the id of the device; None if the token is not a valid one of ``user_id``."""
        if not token:
            return None
        try:
            claims = jwt.decode(
                token,
                self._signing_key,
                algorithms=[_ALGORITHM],
                audience=_AUDIENCE,
                options={"require": ["exp", "sub", "jti", "aud"]},
            )
        except jwt.InvalidTokenError:
            return None
        return str(claims["jti"]) if claims["sub"] == user_id else None


@dataclass(frozen=True, kw_only=True, slots=True)
class SignInAttempt:
    """Describes an attempt to sign in.

    Attributes:
        keys: the throttle keys that the attempt counts against.
        trusted: whether it comes from a device or address that the account used before.
    """

    email: str
    address: str
    keys: tuple[ThrottleKey, ...]
    trusted: bool


class AttemptLimits:
    """Counts attempts. Every method raises `TooManyAttempts` with the seconds to wait."""

    def __init__(self, throttle: Throttle, devices: DeviceTokens) -> None:
        self._throttle = throttle
        self._devices = devices

    async def sign_in(
        self, email: str, user_id: str | None, address: str, device_token: str | None
    ) -> SignInAttempt:
        """Count an attempt to sign in, and wait until it may be verified.

        Attempts from a known device or address have counts of their own, so that attempts of others
        do not delay them.
        """
        attempt = await self._new_attempt(email, user_id, address, device_token)
        await self._throttle.acquire(*attempt.keys)
        return attempt

    async def record_success(self, attempt: SignInAttempt) -> None:
        """Uncount a successful attempt, and trust its address from now on."""
        await self._throttle.uncount(*attempt.keys)
        if attempt.address:
            await self._throttle.remember(_account_at(attempt.email, attempt.address))

    async def register(self, address: str, per_hour: int) -> None:
        """Count a new player, against its address and against ``per_hour`` in total."""
        if address:
            await self._throttle.limit(
                f"register {address}", _REGISTRATIONS_PER_ADDRESS, seconds=_HOUR_SECONDS
            )
        await self._throttle.limit("register", per_hour, seconds=_HOUR_SECONDS)

    async def mail(self, email: str, address: str) -> None:
        """Count a request for a mail."""
        await self.reset(address)
        await self._throttle.limit(f"forgot {email}", _MAILS_PER_EMAIL)

    async def reset(self, address: str) -> None:
        """Count the use of a mailed token."""
        if address:
            await self._throttle.limit(f"from {address}", _RESETS_PER_ADDRESS)

    @asynccontextmanager
    async def change_password(self, user_id: str) -> AsyncIterator[None]:
        """Count an entry of the current password; the block uncounts it unless it raises."""
        # Only the signed-in user can try, so attempts of others do not count.
        key = ThrottleKey(f"change {user_id}", self._throttle.rates.pair)
        await self._throttle.acquire(key)
        yield
        await self._throttle.uncount(key)

    async def _new_attempt(
        self, email: str, user_id: str | None, address: str, device_token: str | None
    ) -> SignInAttempt:
        rates = self._throttle.rates
        device_id = None if user_id is None else self._devices.device_id(device_token, user_id)
        account = ThrottleKey(f"account {email}", rates.account)
        trusted = True
        if device_id is not None:
            keys: tuple[ThrottleKey, ...] = (ThrottleKey(f"device {device_id}", rates.device),)
        elif not address:
            keys, trusted = (account,), False
        else:
            # The keys of the address come first: an address that guesses too fast is stopped there
            # and does not use up the attempts of the account.
            keys = (
                ThrottleKey(f"pair {_account_at(email, address)}", rates.pair),
                ThrottleKey(f"address {address}", rates.address),
            )
            trusted = await self._throttle.is_remembered(_account_at(email, address))
            if not trusted:
                keys += (account,)
        return SignInAttempt(email=email, address=address, keys=keys, trusted=trusted)


def _account_at(email: str, address: str) -> str:
    return f"{email}\0{address}"
