"""Signing up, in and out, and passwords."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from moyin.access.accounts.access_tokens import AccessTokenIssuer
from moyin.access.accounts.bounds import Bounds
from moyin.access.accounts.devices import Devices
from moyin.access.accounts.mail import Mail, Mailer
from moyin.access.accounts.oidc import VerifiedIdentity
from moyin.access.accounts.passwords import Passwords
from moyin.domain.account import ROLE_SCOPES, Session, User, UserKind
from moyin.domain.identity import PLAYER, Identity
from moyin.domain.limits import Limit
from moyin.errors import InsufficientScope, InvalidCredentials, NameTaken
from moyin.store.limits import LimitStore
from moyin.store.reauthorized import ReauthorizedTransactions
from moyin.store.sessions import SessionStore
from moyin.store.sql import Database, Transaction
from moyin.store.users import UserStore

__all__ = ["Policy", "SignIn", "SignedIn"]

_log = logging.getLogger(__name__)
_RESET_LIFETIME = timedelta(hours=1)
_INVITATION_LIFETIME = timedelta(days=7)
_RESET_MAIL = "Set a new password", "You can set a new password"
# Mails under way; more than that are refused, and can be asked for again.
_MAILS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What the operator may change while the app runs.

    Attributes:
        registration: whether strangers may make themselves players.
        registrations_per_hour: by all strangers together.
        player_scopes: what players may do.
        player_limits: of every new player, from then on; ``subject`` is left open.
        reset_url: page that takes the token of a mail; ``{token}`` stands for it.
        trusted_issuers: the OpenID providers whose word on emails leads to accounts.
    """

    registration: bool = True
    registrations_per_hour: int = 600
    player_scopes: frozenset[str] = frozenset({PLAYER})
    player_limits: Limit | None = None
    reset_url: str = ""
    trusted_issuers: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedIn:
    """A session as its owner gets it.

    Attributes:
        device_token: of whoever signed in; None after a refresh.
    """

    user: User
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_in: int
    device_token: str | None = field(default=None, repr=False)


class SignIn:
    """Everything that begins or ends a session.

    Attributes:
        policy: may be replaced at any time.
    """

    def __init__(
        self,
        *,
        users: UserStore,
        sessions: SessionStore,
        passwords: Passwords,
        mint: AccessTokenIssuer,
        bounds: Bounds,
        devices: Devices,
        mailer: Mailer,
        limits: LimitStore,
        standing: ReauthorizedTransactions,
        database: Database,
    ) -> None:
        self._users = users
        self._sessions = sessions
        self._passwords = passwords
        self._mint = mint
        self._bounds = bounds
        self._devices = devices
        self._mailer = mailer
        self._limits = limits
        self._standing = standing
        self._database = database
        self._mails: set[asyncio.Task[None]] = set()
        self.policy = Policy()

    async def close(self) -> None:
        """Wait for the mails that are under way."""
        await asyncio.gather(*self._mails, return_exceptions=True)

    async def register(self, email: str, password: str, name: str, address: str) -> SignedIn:
        """A new player.

        Raises:
            InsufficientScope: nobody may register.
            WeakPassword: it is easy to guess.
            TooManyAttempts: too many new players in this hour, from this address or altogether.
            NameTaken: somebody has that email.
        """
        if not self.policy.registration:
            raise InsufficientScope("registration is closed; ask an administrator for an account")
        await self._bounds.register(address, self.policy.registrations_per_hour)
        await self._passwords.check(password, email=email, name=name, field="password")
        hashed = await self._passwords.hash(password)
        user = await self._new_player(email=email.lower(), name=name, password=hashed)
        return await self._begin(user)

    async def sign_in(
        self, email: str, password: str, address: str, device_token: str | None = None
    ) -> SignedIn:
        """
        Args:
            device_token: of an earlier sign-in to the account; what others try does not slow it down.

        Raises:
            InvalidCredentials: which of the two is wrong is not told.
            TooManyAttempts: with the seconds to wait.
        """
        email = email.lower()
        user = await self._users.by_email(email)
        user_id = None if user is None else user.id
        attempt = await self._bounds.sign_in(email, user_id, address, device_token)
        known = None if user is None or user.disabled_at is not None else user.password
        fits = await self._passwords.fits(known, password, account=email, trusted=attempt.trusted)
        if not fits or user is None or known is None:
            raise InvalidCredentials("the email or the password is wrong")
        await self._bounds.succeeded(attempt)
        outdated = self._passwords.is_outdated(known)
        rehashed = (
            await self._passwords.hash(password, trusted=attempt.trusted) if outdated else None
        )
        # Hashing takes its time: the password may have been reset meanwhile.
        opened = await self._sessions.open_by_password(user.id, known, rehashed)
        if opened is None:
            raise InvalidCredentials("the email or the password is wrong")
        return await self._signed_in(*opened)

    async def sign_in_with(self, vouched: VerifiedIdentity) -> SignedIn:
        """The session of whom a provider vouches for; a new player where the provider may.

        Raises:
            InvalidCredentials: there is no such account, or it is disabled.
            NameTaken: there is an account with that email, and the provider may not open it.
        """
        provider = vouched.provider
        user = await self._users.by_sign_in(provider.issuer, vouched.subject)
        if user is None and vouched.email is not None and provider.links_emails:
            user = await self._users.by_email(vouched.email)
            if user is not None:
                # Whoever registered with this email has not proven it, as this one has: lock them
                # out.
                await self._users.take_over(
                    user.id,
                    provider.issuer,
                    vouched.subject,
                    trusted=self.policy.trusted_issuers,
                )
        if user is None and provider.registers and self.policy.registration:
            user = await self._registered(vouched)
        if user is None or user.disabled_at is not None:
            raise InvalidCredentials("there is no account for you")
        return await self._begin(user)

    async def refresh(self, refresh_token: str) -> SignedIn:
        """
        Raises:
            InvalidToken: see `SessionStore.rotate`.
        """
        session, following = await self._sessions.rotate(refresh_token)
        return await self._signed_in(session, following, refreshed=True)

    async def sign_out(self, user: str, session: str, *, everywhere: bool) -> None:
        """End a session, or all of the user."""
        if everywhere:
            await self._sessions.revoke_all(user)
        else:
            await self._sessions.revoke(session)

    async def change_password(self, user_id: str, session: str, current: str, new: str) -> None:
        """Set a new password; all sessions end but the present one.

        Raises:
            InvalidCredentials: ``current`` is wrong, or the session is over.
            WeakPassword: ``new`` is easy to guess.
        """
        user = await self._users.get(user_id)
        async with self._bounds.change(user_id):
            known = user.password
            if known is not None and not await self._passwords.fits(known, current, trusted=True):
                raise InvalidCredentials("the current password is wrong", field="current_password")
        await self._passwords.check(
            new, email=user.email, name=user.name, field="new_password", trusted=True
        )
        hashed = await self._passwords.hash(new, trusted=True)
        if not await self._sessions.change_password(user_id, session, user.password, hashed):
            raise InvalidCredentials("the current password is wrong", field="current_password")

    async def forgot(self, email: str, address: str) -> None:
        """Mail a token that sets a new password, if there is such an account; never tells.

        Raises:
            TooManyAttempts: with the seconds to wait.
        """
        email = email.lower()
        await self._bounds.mail(email, address)
        user = await self._users.by_email(email)
        if user is not None and user.disabled_at is None:
            token = await self._sessions.allow_reset(user.id, _RESET_LIFETIME)
            self._mail(user, *_RESET_MAIL, token)

    async def invitation(self, user: User, *, within: Transaction) -> str:
        """The token that sets a member's password; those before it end."""
        return await self._sessions.allow_reset(user.id, _INVITATION_LIFETIME, within=within)

    def invite(self, user: User, token: str) -> str | None:
        """Mail a member the token that sets the first password, or another one.

        Without a mail server it is returned, for whoever invites to hand over.
        """
        if not self._mailer.reaches:
            return token
        if user.password is None:
            subject, opening = "Your new account", "An account was made for you; set its password"
        else:
            subject, opening = _RESET_MAIL
        self._mail(user, subject, opening, token)
        return None

    async def reset(self, token: str, password: str, address: str) -> str:
        """Set a new password by a mailed token; all sessions end.

        Returns:
            The device token with which its owner gets in, however many others guess meanwhile.

        Raises:
            InvalidToken: unknown, used or too old.
            WeakPassword: the password is easy to guess.
            TooManyAttempts: with the seconds to wait.
        """
        await self._bounds.reset(address)
        # A made-up token is not worth a hash.
        user = await self._users.get(await self._sessions.reset_for(token))
        await self._passwords.check(
            password, email=user.email, name=user.name, field="password", trusted=True
        )
        hashed = await self._passwords.hash(password, trusted=True)
        await self._sessions.reset_password(token, hashed)
        return self._devices.issue(user.id)

    async def change_profile(
        self, identity: Identity, user_id: str, values: Mapping[str, Any]
    ) -> User:
        """Another name or profile.

        Raises:
            InvalidKey: the session is over.
        """
        async with self._standing.acting(identity) as transaction:
            return await self._users.change(user_id, values, within=transaction)

    async def close_account(self, identity: Identity, user_id: str) -> None:
        """Forget a player, at once and for ever.

        Raises:
            InsufficientScope: members belong to an organisation, whose admins shut them out.
            InvalidKey: the session is over.
        """
        user = await self._users.get(user_id)
        if user.kind is not UserKind.PLAYER:
            raise InsufficientScope("your organisation's administrators close this account")
        async with self._standing.acting(identity) as transaction:
            await self._users.forget(user_id, within=transaction)
            await self._sessions.revoke_all(user_id, within=transaction)

    def scopes_of(self, user: User) -> frozenset[str]:
        return self.policy.player_scopes if user.role is None else ROLE_SCOPES[user.role]

    async def _registered(self, vouched: VerifiedIdentity) -> User:
        sign_in = (vouched.provider.issuer, vouched.subject)
        try:
            return await self._new_player(email=vouched.email, name=vouched.name, sign_in=sign_in)
        except NameTaken:
            # Two of their tabs came at once, and the other was first.
            if (user := await self._users.by_sign_in(*sign_in)) is None:
                raise
            return user

    async def _new_player(
        self,
        *,
        email: str | None,
        name: str,
        password: str | None = None,
        sign_in: tuple[str, str] | None = None,
    ) -> User:
        """A player with their limits, or none: who leaves in between must not be without limits."""
        async with self._database.writing() as transaction:
            user = await self._users.create(
                UserKind.PLAYER,
                email=email,
                name=name,
                password=password,
                sign_in=sign_in,
                within=transaction,
            )
            if self.policy.player_limits is not None:
                limit = replace(self.policy.player_limits, subject=f"user:{user.id}")
                await self._limits.set(limit, within=transaction)
        return user

    async def _begin(self, user: User) -> SignedIn:
        return await self._signed_in(*await self._sessions.open(user.id))

    async def _signed_in(
        self, session: Session, refresh_token: str, *, refreshed: bool = False
    ) -> SignedIn:
        # As they are now that the session is there: whoever gave them another role before could not
        # end it, and whoever does from now on will.
        user = await self._users.get(session.user_id)
        return SignedIn(
            user=user,
            access_token=await self._mint.access_token(user, session, self.scopes_of(user)),
            refresh_token=refresh_token,
            expires_in=int(self._mint.lifetime.total_seconds()),
            device_token=None if refreshed else self._devices.issue(user.id),
        )

    def _mail(self, user: User, subject: str, opening: str, token: str) -> None:
        """In the background: how long it takes would tell whether there is such an account."""
        if user.email is None or len(self._mails) >= _MAILS:
            _log.warning("mail %r to user %s was not sent", subject, user.id)
            return
        way = self.policy.reset_url.replace("{token}", token) or token
        mail = Mail(
            to=user.email,
            subject=subject,
            text=f"{opening}:\n\n{way}\n\nIf you did not expect this, ignore it.\n",
        )
        task = asyncio.create_task(self._send(mail, user.id))
        self._mails.add(task)
        task.add_done_callback(self._mails.discard)

    async def _send(self, mail: Mail, user_id: str) -> None:
        try:
            await self._mailer.send(mail)
        except (OSError, ValueError) as error:
            _log.error("mail %r to user %s failed: %s", mail.subject, user_id, type(error).__name__)
