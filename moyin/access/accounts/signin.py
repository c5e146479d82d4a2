"""Signs people up, in and out, and changes their passwords."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from moyin.access.accounts.access_tokens import AccessTokenIssuer
from moyin.access.accounts.attempt_limits import AttemptLimits, DeviceTokens
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
# Mails being sent at a time; more are dropped and can be requested again.
_MAX_PENDING_MAILS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """Holds the rules that the operator may change while the app runs.

    Attributes:
        registration: whether anybody may register as a player.
        registrations_per_hour: the maximum of new players per hour in total.
        player_scopes: the scopes of players.
        player_limits: the limits of each new player; its ``subject`` is ignored.
        reset_url: the URL of the page that sets a password; ``{token}`` is replaced by the token.
        trusted_issuers: the OpenID providers whose verified emails sign in to existing accounts.
    """

    registration: bool = True
    registrations_per_hour: int = 600
    player_scopes: frozenset[str] = frozenset({PLAYER})
    player_limits: Limit | None = None
    reset_url: str = ""
    trusted_issuers: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedIn:
    """Holds a session's tokens for its user.

    Attributes:
        device_token: the token of the user's device; None after a refresh.
    """

    user: User
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_in: int
    device_token: str | None = field(default=None, repr=False)


class SignIn:
    """Begins and ends sessions, and administers passwords.

    Attributes:
        policy: the present rules; may be replaced at any time.
    """

    def __init__(
        self,
        *,
        users: UserStore,
        sessions: SessionStore,
        passwords: Passwords,
        token_issuer: AccessTokenIssuer,
        attempt_limits: AttemptLimits,
        devices: DeviceTokens,
        mailer: Mailer,
        limits: LimitStore,
        transactions: ReauthorizedTransactions,
        database: Database,
    ) -> None:
        self._users = users
        self._sessions = sessions
        self._passwords = passwords
        self._token_issuer = token_issuer
        self._attempt_limits = attempt_limits
        self._devices = devices
        self._mailer = mailer
        self._limits = limits
        self._transactions = transactions
        self._database = database
        self._pending_mails: set[asyncio.Task[None]] = set()
        self.policy = Policy()

    async def close(self) -> None:
        """Wait for mails that are being sent."""
        await asyncio.gather(*self._pending_mails, return_exceptions=True)

    async def register(self, email: str, password: str, name: str, address: str) -> SignedIn:
        """Create a player and begin a session.

        Raises:
            InsufficientScope: registration is closed.
            WeakPassword: the password is easy to guess.
            TooManyAttempts: too many new players in this hour, from this address or in total.
            NameTaken: another account has that email.
        """
        if not self.policy.registration:
            raise InsufficientScope("registration is closed; ask an administrator for an account")
        await self._attempt_limits.register(address, self.policy.registrations_per_hour)
        await self._passwords.check(password, email=email, name=name, field="password")
        hashed = await self._passwords.hash(password)
        user = await self._new_player(email=email.lower(), name=name, password=hashed)
        return await self._new_session(user)

    async def sign_in(
        self, email: str, password: str, address: str, device_token: str | None = None
    ) -> SignedIn:
        """Begin a session by email and password.

        Args:
            device_token: of an earlier sign-in, so that attempts of others do not delay this one.

        Raises:
            InvalidCredentials: the email or the password is wrong; the error does not say which.
            TooManyAttempts: with the seconds to wait.
        """
        email = email.lower()
        user = await self._users.find_by_email(email)
        user_id = None if user is None else user.id
        attempt = await self._attempt_limits.sign_in(email, user_id, address, device_token)
        stored = None if user is None or user.disabled_at is not None else user.password
        matches = await self._passwords.verify(
            stored, password, account=email, trusted=attempt.trusted
        )
        if not matches or user is None or stored is None:
            raise InvalidCredentials("the email or the password is wrong")
        await self._attempt_limits.record_success(attempt)
        rehashed = None
        if self._passwords.needs_rehash(stored):
            rehashed = await self._passwords.hash(password, trusted=attempt.trusted)
        # Hashing takes time, in which the password may have been reset.
        opened = await self._sessions.open_by_password(user.id, stored, rehashed)
        if opened is None:
            raise InvalidCredentials("the email or the password is wrong")
        return await self._new_tokens(*opened)

    async def sign_in_with(self, verified: VerifiedIdentity) -> SignedIn:
        """Begin a session of the person that a provider verified.

        Creates a player if there is no account and the provider may register players.

        Raises:
            InvalidCredentials: there is no such account, or it is disabled.
            NameTaken: an account has that email, and the provider does not link emails.
        """
        provider = verified.provider
        user = await self._users.find_by_sign_in(provider.issuer, verified.subject)
        if user is None and verified.email is not None and provider.links_emails:
            user = await self._users.find_by_email(verified.email)
            if user is not None:
                # The account's earlier holder has not proven to own the email and loses access.
                await self._users.take_over(
                    user.id,
                    provider.issuer,
                    verified.subject,
                    trusted=self.policy.trusted_issuers,
                )
        if user is None and provider.registers and self.policy.registration:
            user = await self._register_verified(verified)
        if user is None or user.disabled_at is not None:
            raise InvalidCredentials("there is no account for this person, or it is disabled")
        return await self._new_session(user)

    async def refresh(self, refresh_token: str) -> SignedIn:
        """Return new tokens of the session of a refresh token.

        Raises:
            InvalidToken: see `SessionStore.rotate`.
        """
        session, next_token = await self._sessions.rotate(refresh_token)
        return await self._new_tokens(session, next_token, refreshed=True)

    async def sign_out(self, user: str, session: str, *, everywhere: bool) -> None:
        """End one session, or all sessions of the user."""
        if everywhere:
            await self._sessions.revoke_all(user)
        else:
            await self._sessions.revoke(session)

    async def change_password(self, user_id: str, session: str, current: str, new: str) -> None:
        """Set a new password and end all other sessions.

        Raises:
            InvalidCredentials: ``current`` is wrong, or the session has ended.
            WeakPassword: ``new`` is easy to guess.
        """
        user = await self._users.get(user_id)
        async with self._attempt_limits.change_password(user_id):
            if user.password is not None and not await self._passwords.verify(
                user.password, current, trusted=True
            ):
                raise InvalidCredentials("the current password is wrong", field="current_password")
        await self._passwords.check(
            new, email=user.email, name=user.name, field="new_password", trusted=True
        )
        hashed = await self._passwords.hash(new, trusted=True)
        if not await self._sessions.change_password(user_id, session, user.password, hashed):
            raise InvalidCredentials("the current password is wrong", field="current_password")

    async def request_reset(self, email: str, address: str) -> None:
        """Mail a token that sets a new password, if there is such an account.

        The caller cannot see whether there is one.

        Raises:
            TooManyAttempts: with the seconds to wait.
        """
        email = email.lower()
        await self._attempt_limits.mail(email, address)
        user = await self._users.find_by_email(email)
        if user is not None and user.disabled_at is None:
            token = await self._sessions.create_reset_token(user.id, _RESET_LIFETIME)
            self._start_mail(user, *_RESET_MAIL, token)

    async def create_invitation(self, user: User, *, within: Transaction) -> str:
        """Create a token that sets a member's password, and invalidate earlier ones."""
        return await self._sessions.create_reset_token(user.id, _INVITATION_LIFETIME, within=within)

    def send_invitation(self, user: User, token: str) -> str | None:
        """Mail an invitation; without a mail server, return the token for the caller to deliver."""
        if not self._mailer.can_deliver:
            return token
        if user.password is None:
            subject, opening = "Your new account", "An account was made for you; set its password"
        else:
            subject, opening = _RESET_MAIL
        self._start_mail(user, subject, opening, token)
        return None

    async def reset_password(self, token: str, password: str, address: str) -> str:
        """Set a new password by a mailed token and end all sessions.

        Returns:
            A device token, with which others' guesses do not delay the user's next sign-in.

        Raises:
            InvalidToken: the token is unknown, used or expired.
            WeakPassword: the password is easy to guess.
            TooManyAttempts: with the seconds to wait.
        """
        await self._attempt_limits.reset(address)
        # Checked first, so that an invalid token does not cost a hash.
        user = await self._users.get(await self._sessions.user_of_reset_token(token))
        await self._passwords.check(
            password, email=user.email, name=user.name, field="password", trusted=True
        )
        hashed = await self._passwords.hash(password, trusted=True)
        await self._sessions.reset_password(token, hashed)
        return self._devices.issue(user.id)

    async def change_profile(
        self, identity: Identity, user_id: str, values: Mapping[str, Any]
    ) -> User:
        """Change the name or the profile.

        Raises:
            InvalidKey: the session has ended.
        """
        async with self._transactions.begin(identity) as transaction:
            return await self._users.change(user_id, values, within=transaction)

    async def close_account(self, identity: Identity, user_id: str) -> None:
        """Delete the personal data of a player.

        Raises:
            InsufficientScope: the user is a member, whose account the organisation administers.
            InvalidKey: the session has ended.
        """
        user = await self._users.get(user_id)
        if user.kind is not UserKind.PLAYER:
            raise InsufficientScope(
                "only players can close their account; ask an administrator of your organisation"
            )
        async with self._transactions.begin(identity) as transaction:
            await self._users.delete_personal_data(user_id, within=transaction)
            await self._sessions.revoke_all(user_id, within=transaction)

    def _scopes_of(self, user: User) -> frozenset[str]:
        return self.policy.player_scopes if user.role is None else ROLE_SCOPES[user.role]

    async def _register_verified(self, verified: VerifiedIdentity) -> User:
        sign_in = (verified.provider.issuer, verified.subject)
        try:
            return await self._new_player(email=verified.email, name=verified.name, sign_in=sign_in)
        except NameTaken:
            # A concurrent sign-in of the same person may have created the account.
            if (user := await self._users.find_by_sign_in(*sign_in)) is None:
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
        """Create a player and its limits in one transaction, so that no player lacks limits."""
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

    async def _new_session(self, user: User) -> SignedIn:
        return await self._new_tokens(*await self._sessions.open(user.id))

    async def _new_tokens(
        self, session: Session, refresh_token: str, *, refreshed: bool = False
    ) -> SignedIn:
        # Read after the session exists: a change of role from now on ends the session, and an
        # earlier one is already visible here.
        user = await self._users.get(session.user_id)
        return SignedIn(
            user=user,
            access_token=await self._token_issuer.issue(user, session, self._scopes_of(user)),
            refresh_token=refresh_token,
            expires_in=int(self._token_issuer.lifetime.total_seconds()),
            device_token=None if refreshed else self._devices.issue(user.id),
        )

    def _start_mail(self, user: User, subject: str, opening: str, token: str) -> None:
        """Send a mail in the background, so that response times do not reveal whose email exists."""
        if user.email is None or len(self._pending_mails) >= _MAX_PENDING_MAILS:
            _log.warning("mail %r to user %s was dropped", subject, user.id)
            return
        link = self.policy.reset_url.replace("{token}", token) or token
        mail = Mail(
            to=user.email,
            subject=subject,
            text=f"{opening}:\n\n{link}\n\nIf you did not expect this, ignore it.\n",
        )
        task = asyncio.create_task(self._send(mail, user.id))
        self._pending_mails.add(task)
        task.add_done_callback(self._pending_mails.discard)

    async def _send(self, mail: Mail, user_id: str) -> None:
        try:
            await self._mailer.send(mail)
        except (OSError, ValueError) as error:
            _log.error("mail %r to user %s failed: %s", mail.subject, user_id, type(error).__name__)
