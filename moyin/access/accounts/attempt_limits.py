"""Limits how often clients may try to sign in, register, reset passwords and request mails."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import jwt

from moyin.access.accounts.throttle import Throttle, ThrottleKey

_HOUR_SECONDS = 3600
# Mails per recipient in 15 minutes.
_MAILS_PER_EMAIL = 5
# Requests for mails and password resets per client IP address in 15 minutes.
_RESETS_PER_ADDRESS = 100
# New players per client IP address in an hour.
_REGISTRATIONS_PER_ADDRESS = 30
_ALGORITHM = "HS256"
_AUDIENCE = "moyin-device"
_DEVICE_TOKEN_SECONDS = 180 * 86_400


class DeviceTokens:
    """Issues and verifies tokens that identify the devices on which a user has signed in.

    A device token grants no access. Sign-in attempts with it are counted per device, so that an
    attacker's attempts at the same account do not delay the user.
    """

    def __init__(self, signing_key: bytes) -> None:
        self._signing_key = signing_key

    def issue_token(self, user_id: str) -> str:
        """Return a token for a new device of the user."""
        claims = {
            "aud": _AUDIENCE,
            "sub": user_id,
            "jti": secrets.token_hex(12),
            "exp": int(time.time()) + _DEVICE_TOKEN_SECONDS,
        }
        return jwt.encode(claims, self._signing_key, algorithm=_ALGORITHM)

    def get_device_id(self, token: str | None, user_id: str) -> str | None:
        """Return the device id in ``token``, or None if it is not a valid device token of the user."""
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
    """Describes an attempt to sign in with a password.

    Attributes:
        address: the client's IP address, or an empty string if it is unknown.
        keys: the counters of the throttle that the attempt increments.
        is_trusted: True if the account has signed in from this device or address before.
    """

    email: str
    address: str
    keys: tuple[ThrottleKey, ...]
    is_trusted: bool


class AttemptLimits:
    """Counts attempts per account, device and IP address.

    Its methods raise `TooManyAttempts`, with the seconds to wait, if there are too many.
    """

    def __init__(self, throttle: Throttle, devices: DeviceTokens) -> None:
        self._throttle = throttle
        self._devices = devices

    async def admit_sign_in(
        self, email: str, user_id: str | None, address: str, device_token: str | None
    ) -> SignInAttempt:
        """Count an attempt to sign in, and wait until its password may be verified.

        Attempts from a known device or address are counted separately, so that an attacker's
        attempts do not delay them.

        Args:
            user_id: the user with this email; None if there is none.
            address: the client's IP address, or an empty string if it is unknown.
            device_token: the token from an earlier sign-in on the device; None if there is none.
        """
        attempt = await self._create_attempt(email, user_id, address, device_token)
        await self._throttle.acquire(*attempt.keys)
        return attempt

    async def record_success(self, attempt: SignInAttempt) -> None:
        """Decrement the counters of a successful attempt, and trust its IP address from now on."""
        await self._throttle.subtract_attempt(*attempt.keys)
        if attempt.address:
            await self._throttle.record_known_address(
                _join_account_and_address(attempt.email, attempt.address)
            )

    async def count_registration(self, address: str, max_per_hour: int) -> None:
        """Count a registration; allow ``max_per_hour`` in total, and fewer from one IP address."""
        if address:
            await self._throttle.count_event(
                f"register {address}", _REGISTRATIONS_PER_ADDRESS, period_seconds=_HOUR_SECONDS
            )
        await self._throttle.count_event("register", max_per_hour, period_seconds=_HOUR_SECONDS)

    async def count_mail_request(self, email: str, address: str) -> None:
        """Count a request for a mail that resets a password."""
        await self.count_reset(address)
        await self._throttle.count_event(f"forgot {email}", _MAILS_PER_EMAIL)

    async def count_reset(self, address: str) -> None:
        """Count the use of a mailed token that resets a password."""
        if address:
            await self._throttle.count_event(f"from {address}", _RESETS_PER_ADDRESS)

    @asynccontextmanager
    async def count_password_change(self, user_id: str) -> AsyncIterator[None]:
        """Count the ``with`` block as an attempt to enter the current password.

        If the block ends without an error, the attempt is no longer counted.
        """
        # Counted per user only, because an attempt requires the user's session.
        key = ThrottleKey(f"change {user_id}", self._throttle.rates.pair)
        await self._throttle.acquire(key)
        yield
        await self._throttle.subtract_attempt(key)

    async def _create_attempt(
        self, email: str, user_id: str | None, address: str, device_token: str | None
    ) -> SignInAttempt:
        rates = self._throttle.rates
        device_id = None if user_id is None else self._devices.get_device_id(device_token, user_id)
        account_key = ThrottleKey(f"account {email}", rates.account)
        is_trusted = True
        if device_id is not None:
            keys: tuple[ThrottleKey, ...] = (ThrottleKey(f"device {device_id}", rates.device),)
        elif not address:
            keys, is_trusted = (account_key,), False
        else:
            # The address is counted first, so that an address that guesses too fast does not use up
            # the account's limit.
            keys = (
                ThrottleKey(f"pair {_join_account_and_address(email, address)}", rates.pair),
                ThrottleKey(f"address {address}", rates.address),
            )
            is_trusted = await self._throttle.is_known_address(
                _join_account_and_address(email, address)
            )
            if not is_trusted:
                keys += (account_key,)
        return SignInAttempt(email=email, address=address, keys=keys, is_trusted=is_trusted)


def _join_account_and_address(email: str, address: str) -> str:
    return f"{email}\0{address}"
