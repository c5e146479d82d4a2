"""Sends mails through an SMTP server, or logs a warning if no server is configured."""

from __future__ import annotations

import asyncio
import logging
import smtplib
import ssl
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Protocol
from urllib.parse import unquote, urlsplit

_log = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 20.0
_PORTS = {"smtp": 587, "smtps": 465}


@dataclass(frozen=True, kw_only=True, slots=True)
class Mail:
    """Holds one mail. The ``text`` may contain a secret, so it must never be logged."""

    to: str
    subject: str
    text: str = field(repr=False)


class Mailer(Protocol):
    """Sends mails."""

    @property
    def can_deliver(self) -> bool:
        """True if a mail server is configured."""

    async def send(self, mail: Mail) -> None:
        """Send a mail; raise OSError if the mail server refuses it or does not respond."""


class NoMailer:
    """Implements `Mailer` without a mail server: logs a warning for each mail and drops it."""

    can_deliver = False

    async def send(self, mail: Mail) -> None:
        _log.warning(
            "mail %r was not sent; set MOYIN_SMTP_URL to configure a mail server", mail.subject
        )


class SmtpMailer:
    """Sends each mail in a thread, through an SMTP connection of its own.

    Args:
        url: ``smtp://user:password@host:587``, or ``smtps://…`` for TLS from the start. With
            ``smtp``, STARTTLS is used if the server offers it; with a password it is required.
        sender: the address in the mails' From header.
    """

    can_deliver = True

    def __init__(self, url: str, sender: str) -> None:
        url_parts = urlsplit(url)
        if url_parts.scheme not in _PORTS or not url_parts.hostname:
            raise ValueError("MOYIN_SMTP_URL must be smtp://<host>:<port> or smtps://<host>:<port>")
        self._tls = url_parts.scheme == "smtps"
        self._host = url_parts.hostname
        self._port = url_parts.port or _PORTS[url_parts.scheme]
        self._user = unquote(url_parts.username or "")
        self._password = unquote(url_parts.password or "")
        self._sender = sender

    async def send(self, mail: Mail) -> None:
        # smtplib's errors are subclasses of OSError.
        await asyncio.to_thread(self._send, mail)

    def _send(self, mail: Mail) -> None:
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = self._sender, mail.to, mail.subject
        message.set_content(mail.text)
        with self._connect() as server:
            if self._user:
                server.login(self._user, self._password)
            server.send_message(message)

    def _connect(self) -> smtplib.SMTP:
        context = ssl.create_default_context()
        if self._tls:
            return smtplib.SMTP_SSL(
                self._host, self._port, timeout=_TIMEOUT_SECONDS, context=context
            )
        server = smtplib.SMTP(self._host, self._port, timeout=_TIMEOUT_SECONDS)
        server.ehlo()
        if server.has_extn("starttls") or self._password:
            server.starttls(context=context)
        return server


def create_mailer(url: str, sender: str) -> Mailer:
    """Return a mailer for an SMTP URL, or a `NoMailer` if ``url`` is empty."""
    return SmtpMailer(url, sender) if url else NoMailer()
