"""How often may be tried: signing in, signing up, asking for mails."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from moyin.access.accounts.devices import Devices
from moyin.access.accounts.throttle import Gate, Throttle

__all__ = ["Attempt", "Bounds"]

_HOUR_SECONDS = 3600
# Mails to one email in a quarter of an hour, whoever asks for them.
_MAILS = 5
# Requests for mails, and resets, from one address in a quarter of an hour.
_FROM_ADDRESS = 100
# New players from one address in an hour.
_REGISTERED_FROM_ADDRESS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """An attempt to sign in.

    Attributes:
        gates: what it counts against.
        trusted: it comes from where the account was used before.
    """

    email: str
    address: str
    gates: tuple[Gate, ...]
    trusted: bool


class Bounds:
    """Counts what is tried. Every method raises `TooManyAttempts` with the seconds to wait."""

    def __init__(self, throttle: Throttle, devices: Devices) -> None:
        self._throttle = throttle
        self._devices = devices

    async def sign_in(
        self, email: str, user_id: str | None, address: str, device_token: str | None
    ) -> Attempt:
        """Wait for the turn of an attempt.

        What proves something about its sender has a count of its own: what others try is no concern
        of theirs.
        """
        attempt = await self._attempt(email, user_id, address, device_token)
        await self._throttle.turn(*attempt.gates)
        return attempt

    async def succeeded(self, attempt: Attempt) -> None:
        """The attempt was right: it does not count, and its address is known from now on."""
        await self._throttle.forgive(*attempt.gates)
        if attempt.address:
            await self._throttle.remember(_at(attempt.email, attempt.address))

    async def register(self, address: str, per_hour: int) -> None:
        """Count a new player; ``per_hour`` is for all of them, whether addresses are known or not."""
        if address:
            await self._throttle.limit(
                f"register {address}", _REGISTERED_FROM_ADDRESS, seconds=_HOUR_SECONDS
            )
        await self._throttle.limit("register", per_hour, seconds=_HOUR_SECONDS)

    async def mail(self, email: str, address: str) -> None:
        """Count a request for a mail."""
        await self.reset(address)
        await self._throttle.limit(f"forgot {email}", _MAILS)

    async def reset(self, address: str) -> None:
        """Count the use of a mailed token."""
        if address:
            await self._throttle.limit(f"from {address}", _FROM_ADDRESS)

    @asynccontextmanager
    async def change(self, user_id: str) -> AsyncIterator[None]:
        """Count what a signed-in user takes for their password; it was right if the block ends well."""
        # Only they can try: nobody else counts against them.
        gate = Gate(f"change {user_id}", self._throttle.paces.pair)
        await self._throttle.turn(gate)
        yield
        await self._throttle.forgive(gate)

    async def _attempt(
        self, email: str, user_id: str | None, address: str, device_token: str | None
    ) -> Attempt:
        paces = self._throttle.paces
        device = None if user_id is None else self._devices.name_of(device_token, user_id)
        account = Gate(f"account {email}", paces.account)
        trusted = True
        if device is not None:
            gates: tuple[Gate, ...] = (Gate(f"device {device}", paces.device),)
        elif not address:
            gates, trusted = (account,), False
        else:
            # An address that guesses too fast uses up its own turns first, not the account's.
            gates = (
                Gate(f"pair {_at(email, address)}", paces.pair),
                Gate(f"address {address}", paces.address),
            )
            trusted = await self._throttle.is_known(_at(email, address))
            if not trusted:
                gates += (account,)
        return Attempt(email=email, address=address, gates=gates, trusted=trusted)


def _at(email: str, address: str) -> str:
    return f"{email}\0{address}"
