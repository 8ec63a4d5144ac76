"""Who asks, and whether they may: tokens, tickets, and who is let go when one is revoked.

A token reads ``rushes_<id>_<secret>``. The store keeps a digest of the secret; with 256
random bits there is nothing to guess, so a plain SHA-256 is enough and every request can
afford it. All tokens are kept in memory, too: one process holds the database, so what is
here is what is stored, and to know somebody reads nothing.

A browser can't send a header with a WebSocket or an event stream. It asks for a ticket
first, which is good once, for seconds, in the address: whoever reads that in some log
later holds nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from application.ports import Clock, Secrets, Threads, Tokens
from domain.access import ANYBODY, OWNER, Principal, Role, Token
from domain.errors import Conflict, InvalidInput, RushesError, TokenNotFound, Unauthenticated

log = logging.getLogger(__name__)

MAX_TOKENS = 1_000
"""All are kept in memory. More than any house has people, detectors and services."""

MAX_NAME = 100
"""Characters."""

MIN_EXPIRES_S, MAX_EXPIRES_S = 1.0, 10 * 365 * 86_400.0
"""Ten years: what is to hold longer may as well hold for ever, and be revoked."""

TICKET_S = 30.0
"""From asking for a ticket to connecting with it."""

MAX_TICKETS = 4_096
"""Unused at one time: more frontends than come back at once after a restart."""

USED_EVERY = timedelta(minutes=10)
"""How exactly is known when a token was last used: not every request is worth a write."""

SAVE_EVERY_S = 60.0
"""How often it is written down which tokens were used."""

NOBODY = hashlib.sha256(b"").hexdigest()
"""What the secret of a token that isn't there is compared with, in as much time as any."""


@dataclass(slots=True)
class _Known:
    token: Token
    principal: Principal


@dataclass(frozen=True, slots=True)
class _Ticket:
    principal: Principal
    expires_at_s: float


class Access:
    """``owner_key``: who shows it is the user whom the server runs for; empty: nobody is.

    Lives on one event loop, between ``open`` and its end.
    """

    def __init__(
        self,
        *,
        tokens: Tokens,
        clock: Clock,
        secrets: Secrets,
        threads: Threads,
        owner_key: str = "",
    ) -> None:
        self._tokens = tokens
        self._clock = clock
        self._secrets = secrets
        self._threads = threads
        self._owner_key = owner_key.encode()
        self._known: dict[int, _Known] = {}
        self._kept_locked = False
        self._tickets: dict[str, _Ticket] = {}
        self._staying: dict[Principal, set[asyncio.Future[None]]] = {}
        self._used: dict[int, datetime] = {}
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        """Read all tokens, before anybody is let in."""
        stored = await self._threads.run(self._tokens.all)
        self._known = {token.id: _Known(token, token.principal) for token in stored}

    @property
    def locked(self) -> bool:
        """Whether it takes a token to be let in: as soon as there is one that isn't revoked.

        Also one that has expired: a door doesn't open because its keys are old.
        """
        return bool(self._known) or self._kept_locked

    def keep_locked(self) -> None:
        """Stay locked when the last token is revoked: others than this machine can reach us."""
        self._kept_locked = True
        self._let_go()

    # -- who asks ----------------------------------------------------------------

    def who(self, authorization: str | None, key: str | None = None) -> Principal:
        """Who shows this. ``authorization``: ``Bearer`` and a token. ``key``: the owner's.

        A token goes first: who shows one means to be what it says, and nothing more.
        Raises ``Unauthenticated``, which never repeats what was shown.
        """
        if not self.locked:
            return OWNER if self.is_owner(key) else ANYBODY
        if authorization is not None:
            return self._bearer(authorization)
        if self.is_owner(key):
            return OWNER
        raise Unauthenticated("a token is needed, and none was shown")

    def is_owner(self, key: str | None) -> bool:
        if not self._owner_key or key is None:
            return False
        return hmac.compare_digest(key.encode(), self._owner_key)

    def _bearer(self, authorization: str) -> Principal:
        scheme, _, shown = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("a token is shown as Authorization: Bearer and the token")
        known = self._token(shown.strip())
        if known is None:
            raise Unauthenticated("the token that was shown is none of this server's")
        now = self._clock.now()
        if _is_over(known.token, now):
            raise Unauthenticated(f"{_named(known.token)} has expired")
        last = known.token.last_used_at
        if last is None or now - last >= USED_EVERY:
            known.token = replace(known.token, last_used_at=now)
            self._used[known.token.id] = now
        return known.principal

    def _token(self, text: str) -> _Known | None:
        prefix, _, rest = text.partition("_")
        number, _, secret = rest.partition("_")
        known = None
        if prefix == "rushes" and number.isascii() and number.isdigit() and len(number) < 20:
            known = self._known.get(int(number))
        right = hmac.compare_digest(
            _digest(secret), NOBODY if known is None else known.token.digest
        )
        return known if right else None

    # -- tickets -----------------------------------------------------------------

    def ticket(self, principal: Principal) -> tuple[str, datetime]:
        """Something that is good once in this one's place, and until when."""
        now_s = self._clock.monotonic()
        while self._tickets:  # they stand in the order in which they expire
            oldest = next(iter(self._tickets))
            if self._tickets[oldest].expires_at_s > now_s and len(self._tickets) < MAX_TICKETS:
                break
            del self._tickets[oldest]
        text = self._secrets.new()
        self._tickets[_digest(text)] = _Ticket(principal, now_s + TICKET_S)
        return text, self._clock.now() + timedelta(seconds=TICKET_S)

    def redeem(self, ticket: str) -> Principal:
        """Whose it is; it is used up. Raises ``Unauthenticated``."""
        found = self._tickets.pop(_digest(ticket), None)
        if found is None or found.expires_at_s <= self._clock.monotonic():
            raise Unauthenticated(
                f"the ticket isn't good: each is good once, for {TICKET_S:g} seconds"
            )
        if not self._stands(found.principal):
            raise Unauthenticated("the ticket belongs to somebody who isn't let in any more")
        return found.principal

    # -- who is let go -----------------------------------------------------------

    def over(self, principal: Principal) -> asyncio.Future[None]:
        """Done once this one isn't let in any more; who stays connected waits for it, too.

        To be cancelled by who has it when the connection ends.
        """
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._stands(principal):
            over.set_result(None)
            return over
        staying = self._staying.setdefault(principal, set())
        staying.add(over)

        def left(over: asyncio.Future[None]) -> None:
            staying.discard(over)
            if not staying and self._staying.get(principal) is staying:
                del self._staying[principal]

        over.add_done_callback(left)
        return over

    def _stands(self, principal: Principal) -> bool:
        if principal == OWNER:
            return True
        if principal.token_id is None:
            return not self.locked
        known = self._known.get(principal.token_id)
        return known is not None and not _is_over(known.token, self._clock.now())

    def _let_go(self) -> None:
        for principal, staying in tuple(self._staying.items()):
            if not self._stands(principal):
                for over in tuple(staying):
                    if not over.done():
                        over.set_result(None)
        self._changed.set()

    # -- tokens ------------------------------------------------------------------

    async def new(
        self, role: str, name: str = "", expires_in_s: float | None = None
    ) -> tuple[Token, str]:
        """A new token, and its text, which nobody is told again.

        With the first one, whoever is connected without is let go.
        Raises ``InvalidInput``, naming the field; ``Conflict`` if there are too many.
        """
        made_for = _role(role)
        _check_name(name)
        now = self._clock.now()
        expires_at = _expiry(now, expires_in_s)
        async with self._turn:
            if len(self._known) >= MAX_TOKENS:
                raise Conflict(f"there are {MAX_TOKENS} tokens already: revoke what isn't used")
            secret = self._secrets.new()
            token = await self._threads.run(
                lambda: self._tokens.add(
                    name=name,
                    role=made_for,
                    digest=_digest(secret),
                    created_at=now,
                    expires_at=expires_at,
                )
            )
            self._known[token.id] = _Known(token, token.principal)
        self._let_go()
        return token, f"rushes_{token.id}_{secret}"

    def tokens(self) -> Sequence[Token]:
        """All that aren't revoked, the oldest first."""
        return [known.token for _, known in sorted(self._known.items())]

    async def revoke(self, token_id: int) -> Token:
        """It is good no more, and whoever is connected with it is let go.

        Raises ``TokenNotFound``.
        """
        async with self._turn:
            known = self._known.get(token_id)
            if known is None:
                raise TokenNotFound(token_id)
            await self._threads.run(lambda: self._tokens.revoke(token_id))
            del self._known[token_id]
            self._used.pop(token_id, None)
        self._let_go()
        return known.token

    async def run(self) -> None:
        """Until it is cancelled: let go who expires, and write down what was used."""
        saved_at_s = self._clock.monotonic()
        while True:
            self._let_go()
            self._changed.clear()
            if self._clock.monotonic() - saved_at_s >= SAVE_EVERY_S:
                saved_at_s = self._clock.monotonic()
                await self.save()
            await self._until_something_is_due()

    async def save(self) -> None:
        """Write down when tokens were last used."""
        used, self._used = self._used, {}
        if not used:
            return
        try:
            await self._threads.run(lambda: self._tokens.used(used))
        except RushesError as error:
            log.warning("when tokens were last used isn't written down: %s", error)

    async def _until_something_is_due(self) -> None:
        now = self._clock.now()
        lives = [
            (known.token.expires_at - now).total_seconds()
            for known in self._known.values()
            if known.token.expires_at is not None and known.token.expires_at > now
        ]
        waits = {
            asyncio.ensure_future(self._clock.sleep(min((SAVE_EVERY_S, *lives)))),
            asyncio.ensure_future(self._changed.wait()),
        }
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "backslashreplace")).hexdigest()


def _is_over(token: Token, now: datetime) -> bool:
    return token.expires_at is not None and token.expires_at <= now


def _named(token: Token) -> str:
    return f"token {token.id}" + (f" ({token.name})" if token.name else "")


def _role(text: str) -> Role:
    try:
        return Role(text)
    except ValueError:
        raise InvalidInput(
            f"role must be one of {', '.join(Role)}, not {text!a}", field="role"
        ) from None


def _check_name(name: str) -> None:
    if len(name) > MAX_NAME or not name.isprintable():
        raise InvalidInput(
            f"name must be at most {MAX_NAME} characters, all of them visible", field="name"
        )


def _expiry(now: datetime, expires_in_s: float | None) -> datetime | None:
    if expires_in_s is None:
        return None
    if not MIN_EXPIRES_S <= expires_in_s <= MAX_EXPIRES_S:
        raise InvalidInput(
            f"expires_in_s must be from {MIN_EXPIRES_S:g} to {MAX_EXPIRES_S:.0f} seconds",
            field="expires_in_s",
        )
    return now + timedelta(seconds=expires_in_s)
