"""What stands in an ASGI scope beside what the server has put there."""

from __future__ import annotations

from starlette.types import Scope

from domain.access import Principal

PRINCIPAL = "rushes.principal"
"""Who asks; whoever was let in has one."""

OUTCOME = "rushes.outcome"
"""The status of a refusal, for the audit."""


def principal_of(scope: Scope) -> Principal:
    principal = scope[PRINCIPAL]
    assert isinstance(principal, Principal)
    return principal


def address_of(scope: Scope) -> str:
    """Where a request comes from, without the port."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"
