"""Who may what: roles, what each of them may, and who somebody is.

While there are no tokens, everybody who reaches the server may everything but see to
tokens. From the first token on, everybody is what their token says.

             read  follow  trigger  control  work  announce  tokens
    viewer    x      x
    operator  x      x        x        x
    detector         x                                x
    service   x      x        x                 x
    admin     x      x        x        x        x     x        x
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from domain.errors import NotPermitted, Unauthenticated


class Role(StrEnum):
    VIEWER = "viewer"
    OPERATOR = "operator"
    DETECTOR = "detector"
    SERVICE = "service"
    ADMIN = "admin"


class Permission(StrEnum):
    """read: ask how things stand. follow: be connected, and told what happens.

    trigger: start a pipeline. control: retry, cancel, settle, run again, pause, the engine.
    work: claim external steps, and report on them. announce: say that a card is there.
    tokens: make, list and revoke tokens.
    """

    READ = "read"
    FOLLOW = "follow"
    TRIGGER = "trigger"
    CONTROL = "control"
    WORK = "work"
    ANNOUNCE = "announce"
    TOKENS = "tokens"


_SEES = frozenset({Permission.READ, Permission.FOLLOW})

PERMISSIONS: Mapping[Role, frozenset[Permission]] = {
    Role.VIEWER: _SEES,
    Role.OPERATOR: _SEES | {Permission.TRIGGER, Permission.CONTROL},
    Role.DETECTOR: frozenset({Permission.FOLLOW, Permission.ANNOUNCE}),
    Role.SERVICE: _SEES | {Permission.TRIGGER, Permission.WORK},
    Role.ADMIN: frozenset(Permission),
}

_EVERYTHING_BUT_TOKENS = frozenset(Permission) - {Permission.TOKENS}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks.

    role: None for who has shown nothing, which is enough while there are no tokens.
    token_id: of the token that was shown, if it was one.
    """

    name: str
    role: Role | None
    token_id: int | None = None
    expires_at: datetime | None = None

    def may(self, permission: Permission) -> bool:
        if self.role is None:
            return permission in _EVERYTHING_BUT_TOKENS
        return permission in PERMISSIONS[self.role]

    def check(self, permission: Permission) -> None:
        """Raises ``NotPermitted``, naming role and permission; ``Unauthenticated``
        if nothing was shown at all."""
        if self.may(permission):
            return
        if self.role is None:
            raise Unauthenticated(
                f"this needs the permission {permission!s}, also while there are no tokens: "
                "it is for the user whom the server runs for, on the same machine"
            )
        raise NotPermitted(self.role, permission)


ANYBODY = Principal("anonymous", None)
OWNER = Principal("owner", Role.ADMIN)
"""The user whom the server runs for, on the same machine."""


@dataclass(frozen=True, slots=True)
class Token:
    """What the server remembers of a token.

    name: whose it is, for people; may be empty.
    digest: SHA-256 of its secret, in hexadecimal; the secret itself nobody keeps.
    last_used_at: coarse; None if it never was.
    """

    id: int
    name: str
    role: Role
    digest: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None = None

    @property
    def principal(self) -> Principal:
        return Principal(self.name or f"token {self.id}", self.role, self.id, self.expires_at)
