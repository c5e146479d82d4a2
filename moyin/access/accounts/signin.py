"""Registers players, starts and ends users' sessions, and changes their passwords."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from moyin.access.accounts.access_tokens import AccessTokenIssuer
from moyin.access.accounts.attempt_limits import AttemptLimits, DeviceTokens
from moyin.access.accounts.mail import Mail, Mailer
from moyin.access.accounts.oidc import VerifiedIdentity
from moyin.access.accounts.passwords import PasswordService
from moyin.access.accounts.rules import SignInPolicy
from moyin.domain.account import ROLE_SCOPES, Session, User, UserKind
from moyin.domain.identity import Identity
from moyin.errors import InsufficientScope, InvalidCredentials, NameTaken
from moyin.store.limits import LimitStore
from moyin.store.reauthorization import ReauthorizedTransactions
from moyin.store.sessions import SessionStore
from moyin.store.sql import Database, Transaction
from moyin.store.users import UserStore

_log = logging.getLogger(__name__)
_RESET_LIFETIME = timedelta(hours=1)
# Seconds after a request for a mail when its token is created.
_RESET_DELAY_SECONDS = 0.1
_INVITATION_LIFETIME = timedelta(days=7)
_RESET_MAIL = "Set a new password", "You can set a new password"
# Maximum number of mails that wait to be sent; further mails are dropped and can be requested
# again.
_MAX_PENDING_MAILS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class SignInResult:
    """Holds the tokens of a new or refreshed session.

    Attributes:
        session: the session, which expires later than ``access_token``.
        expires_in: the seconds until ``access_token`` expires.
        device_token: the token that identifies the user's device, or None after a refresh.
    """

    user: User
    session: Session
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_in: int
    device_token: str | None = field(default=None, repr=False)


class SignInService:
    """Registers players, begins and ends sessions, and changes passwords and profiles.

    Attributes:
        policy: the current rules; the accounts app replaces them when it is reconfigured.
    """

    def __init__(
        self,
        *,
        users: UserStore,
        sessions: SessionStore,
        passwords: PasswordService,
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
        self.policy = SignInPolicy()

    async def close(self) -> None:
        """Wait until all pending mails are sent."""
        await asyncio.gather(*self._pending_mails, return_exceptions=True)

    @property
    def can_mail_tokens(self) -> bool:
        """True if tokens that reset passwords can be mailed."""
        return self._mailer.can_deliver

    async def register(self, email: str, password: str, name: str, address: str) -> SignInResult:
        """Create a player and begin a session.

        Raises:
            InsufficientScope: the policy does not allow registration.
            WeakPassword: the password is easy to guess.
            TooManyAttempts: too many players registered in this hour, from this address or in total.
            NameTaken: another account has that email.
        """
        if not self.policy.allows_registration:
            raise InsufficientScope("registration is disabled; ask an administrator for an account")
        await self._attempt_limits.count_registration(address, self.policy.registrations_per_hour)
        await self._passwords.require_strong(password, email=email, name=name, field="password")
        password_hash = await self._passwords.hash(password)
        user = await self._create_player(email=email.lower(), name=name, password=password_hash)
        return await self._begin_session(user)

    async def sign_in(
        self, email: str, password: str, address: str, device_token: str | None = None
    ) -> SignInResult:
        """Verify the password of the user with this email and begin a session.

        With a device token of an earlier sign-in, attempts from other devices do not delay this
        one.

        Raises:
            InvalidCredentials: the email or the password is wrong; the error does not say which.
            TooManyAttempts: too many attempts failed; the error has the seconds to wait.
        """
        email = email.lower()
        user = await self._users.find_by_email(email)
        user_id = None if user is None else user.id
        attempt = await self._attempt_limits.admit_sign_in(email, user_id, address, device_token)
        stored_hash = None if user is None or user.disabled_at is not None else user.password
        is_correct = await self._passwords.verify(
            stored_hash, password, account=email, is_trusted=attempt.is_trusted
        )
        if not is_correct or user is None or stored_hash is None:
            raise InvalidCredentials("the email or the password is wrong; check both")
        await self._attempt_limits.record_success(attempt)
        new_hash = None
        if self._passwords.needs_rehash(stored_hash):
            new_hash = await self._passwords.hash(password, is_trusted=attempt.is_trusted)
        # The password may have been changed since it was verified.
        session_and_token = await self._sessions.open_by_password(user.id, stored_hash, new_hash)
        if session_and_token is None:
            raise InvalidCredentials("the email or the password is wrong; check both")
        return await self._issue_tokens(*session_and_token)

    async def sign_in_with_identity(self, verified_identity: VerifiedIdentity) -> SignInResult:
        """Begin a session of a person whose identity an OpenID provider has verified.

        A person without an account becomes a player if the provider and the policy allow it.

        Raises:
            InvalidCredentials: the person has no account, or it is disabled.
            NameTaken: another account has the email, and users of the provider may not sign in to
                that account.
        """
        provider = verified_identity.provider
        user = await self._users.find_by_sign_in(provider.issuer, verified_identity.subject)
        if user is None and verified_identity.email is not None and provider.links_emails:
            user = await self._users.find_by_email(verified_identity.email)
            if user is not None:
                # The creator of the account never proved to own its email, and therefore loses
                # access.
                await self._users.transfer_to_sign_in(
                    user.id,
                    provider.issuer,
                    verified_identity.subject,
                    trusted_issuers=self.policy.trusted_issuers,
                )
        if user is None and provider.registers and self.policy.allows_registration:
            user = await self._create_verified_player(verified_identity)
        if user is None or user.disabled_at is not None:
            raise InvalidCredentials(
                f"this identity at {provider.issuer} has no account, or the account is disabled; ask "
                "an administrator"
            )
        return await self._begin_session(user)

    async def refresh_session(self, refresh_token: str) -> SignInResult:
        """Return new tokens for a refresh token, or raise `InvalidToken` if it is not valid."""
        session, next_token = await self._sessions.rotate_refresh_token(refresh_token)
        return await self._issue_tokens(session, next_token, is_refresh=True)

    async def renew_session(self, refresh_token: str) -> SignInResult:
        """Return a new access token for a browser's refresh token, which stays valid.

        Raises `InvalidToken` if the session has ended.
        """
        session = await self._sessions.renew(refresh_token)
        return await self._issue_tokens(session, refresh_token, is_refresh=True)

    async def sign_out(self, user_id: str, session_id: str, *, everywhere: bool) -> None:
        """End a session, or all sessions of the user if ``everywhere`` is True."""
        if everywhere:
            await self._sessions.revoke_all(user_id)
        else:
            await self._sessions.revoke(session_id)

    async def change_password(
        self, user_id: str, session_id: str, current_password: str, new_password: str
    ) -> None:
        """Set a new password and end all sessions of the user except ``session_id``.

        Raises:
            InvalidCredentials: ``current_password`` is wrong, or the session has ended.
            WeakPassword: ``new_password`` is easy to guess.
        """
        user = await self._users.get(user_id)
        async with self._attempt_limits.count_password_change(user_id):
            if user.password is not None and not await self._passwords.verify(
                user.password, current_password, is_trusted=True
            ):
                raise InvalidCredentials(
                    "current_password is wrong; enter the password with which you sign in",
                    field="current_password",
                )
        await self._passwords.require_strong(
            new_password, email=user.email, name=user.name, field="new_password", is_trusted=True
        )
        new_hash = await self._passwords.hash(new_password, is_trusted=True)
        if not await self._sessions.change_password(user_id, session_id, user.password, new_hash):
            raise InvalidCredentials(
                "current_password was changed meanwhile, or the session has ended; sign in again",
                field="current_password",
            )

    async def request_password_reset(self, email: str, address: str) -> None:
        """Mail a token that sets a new password, if an account has this email.

        The result is the same if no account has it, and takes as long, so that callers cannot find
        out. Too many requests raise `TooManyAttempts`.
        """
        email = email.lower()
        await self._attempt_limits.count_mail_request(email, address)
        user = await self._users.find_by_email(email)
        if user is not None and user.disabled_at is None:
            self._mail_in_background(user, *_RESET_MAIL, token=None)

    async def create_invitation(self, user: User, *, transaction: Transaction) -> str:
        """Create and return a token that sets a user's password; earlier tokens become invalid."""
        return await self._sessions.create_reset_token(
            user.id, _INVITATION_LIFETIME, transaction=transaction
        )

    def send_invitation(self, user: User, token: str) -> str | None:
        """Mail the token of an invitation; return the token instead if there is no mail server."""
        if not self._mailer.can_deliver:
            return token
        if user.password is None:
            subject, opening = "Your new account", "An account was made for you; set its password"
        else:
            subject, opening = _RESET_MAIL
        self._mail_in_background(user, subject, opening, token)
        return None

    async def reset_password(self, token: str, password: str, address: str) -> str:
        """Set a new password by a mailed token and end all sessions of the user.

        Returns:
            A device token, so that others' failed attempts do not delay the user's next sign-in.

        Raises:
            InvalidToken: the token is unknown, was used before or has expired.
            WeakPassword: the password is easy to guess.
            TooManyAttempts: too many tokens were tried; the error has the seconds to wait.
        """
        await self._attempt_limits.count_reset(address)
        # The token is checked before the password is hashed, since hashing is expensive.
        user = await self._users.get(await self._sessions.find_user_by_reset_token(token))
        await self._passwords.require_strong(
            password, email=user.email, name=user.name, field="password", is_trusted=True
        )
        password_hash = await self._passwords.hash(password, is_trusted=True)
        await self._sessions.reset_password(token, password_hash)
        return self._devices.issue_token(user.id)

    async def change_profile(
        self, identity: Identity, user_id: str, values: Mapping[str, Any]
    ) -> User:
        """Set columns of a user, such as the name; raise `InvalidKey` if the session has ended."""
        async with self._transactions.begin(identity) as transaction:
            return await self._users.change(user_id, values, transaction=transaction)

    async def close_account(self, identity: Identity, user_id: str) -> None:
        """Delete the personal data of a player and end the player's sessions.

        Raises:
            InsufficientScope: the user is a member, whose account the organisation administers.
            InvalidKey: the caller's session has ended.
        """
        user = await self._users.get(user_id)
        if user.kind is not UserKind.PLAYER:
            raise InsufficientScope(
                "only players can close their accounts; ask an administrator of your organisation"
            )
        async with self._transactions.begin(identity) as transaction:
            await self._users.delete_personal_data(user_id, transaction=transaction)
            await self._sessions.revoke_all(user_id, transaction=transaction)

    def _get_scopes(self, user: User) -> frozenset[str]:
        return self.policy.player_scopes if user.role is None else ROLE_SCOPES[user.role]

    async def _create_verified_player(self, verified_identity: VerifiedIdentity) -> User:
        sign_in = (verified_identity.provider.issuer, verified_identity.subject)
        try:
            return await self._create_player(
                email=verified_identity.email, name=verified_identity.name, sign_in=sign_in
            )
        except NameTaken:
            # A concurrent sign-in of the same person may have created the account.
            if (user := await self._users.find_by_sign_in(*sign_in)) is None:
                raise
            return user

    async def _create_player(
        self,
        *,
        email: str | None,
        name: str,
        password: str | None = None,
        sign_in: tuple[str, str] | None = None,
    ) -> User:
        """Create a player and the player's limits in one transaction.

        Args:
            sign_in: the issuer and the subject of the person at an OpenID provider; None if the
                player has a password.
        """
        async with self._database.writing() as transaction:
            user = await self._users.create(
                UserKind.PLAYER,
                email=email,
                name=name,
                password=password,
                sign_in=sign_in,
                transaction=transaction,
            )
            if self.policy.player_limits is not None:
                limit = replace(self.policy.player_limits, subject=f"user:{user.id}")
                await self._limits.set(limit, transaction=transaction)
        return user

    async def _begin_session(self, user: User) -> SignInResult:
        return await self._issue_tokens(*await self._sessions.open(user.id))

    async def _issue_tokens(
        self, session: Session, refresh_token: str, *, is_refresh: bool = False
    ) -> SignInResult:
        # The user is read after the session exists, since a later change of role ends the session.
        user = await self._users.get(session.user_id)
        return SignInResult(
            user=user,
            session=session,
            access_token=await self._token_issuer.issue(user, session, self._get_scopes(user)),
            refresh_token=refresh_token,
            expires_in=int(self._token_issuer.lifetime.total_seconds()),
            device_token=None if is_refresh else self._devices.issue_token(user.id),
        )

    def _mail_in_background(
        self, user: User, subject: str, opening: str, token: str | None
    ) -> None:
        """Send a mail in the background, so that response times do not reveal which emails exist.

        Args:
            opening: the sentence before the link.
            token: the token that the link contains; if None, a new one that sets the password.
        """
        if user.email is None or len(self._pending_mails) >= _MAX_PENDING_MAILS:
            _log.warning(
                "mail %r to user %s was dropped: the user has no email, or %d mails are pending",
                subject,
                user.id,
                len(self._pending_mails),
            )
            return
        task = asyncio.create_task(self._mail(user.id, user.email, subject, opening, token))
        self._pending_mails.add(task)
        task.add_done_callback(self._pending_mails.discard)

    async def _mail(
        self, user_id: str, email: str, subject: str, opening: str, token: str | None
    ) -> None:
        """Send a mail, and log an error instead of raising one."""
        try:
            if token is None:
                # Until the response is sent, the database and the processor do nothing for the token.
                await asyncio.sleep(_RESET_DELAY_SECONDS)
                token = await self._sessions.create_reset_token(user_id, _RESET_LIFETIME)
            link = self.policy.reset_url.replace("{token}", token) or token
            text = f"{opening}:\n\n{link}\n\nIf you did not expect this, ignore it.\n"
            await self._mailer.send(Mail(to=email, subject=subject, text=text))
        except (OSError, SQLAlchemyError, ValueError) as error:
            _log.error(
                "mail %r to user %s could not be sent: %s", subject, user_id, type(error).__name__
            )
