"""Who may what."""

from __future__ import annotations

import re

import pytest

from domain import access
from domain.access import ANYBODY, OWNER, PERMISSIONS, Permission, Principal, Role
from domain.errors import Forbidden, NotPermitted, Unauthenticated


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("permission", Permission)
def test_a_role_may_what_the_table_says_and_nothing_else(
    role: Role, permission: Permission
) -> None:
    somebody = Principal("somebody", role)
    if permission in PERMISSIONS[role]:
        somebody.check(permission)
        return
    with pytest.raises(NotPermitted) as refused:
        somebody.check(permission)
    assert isinstance(refused.value, Forbidden)
    assert (refused.value.role, refused.value.permission) == (role.value, permission.value)
    assert role.value in refused.value.message
    assert permission.value in refused.value.message


def test_the_table_that_people_read_is_the_one_that_counts() -> None:
    lines = (access.__doc__ or "").splitlines()
    heads = next(line for line in lines if " read " in line)
    starts = {name: heads.index(name) for name in heads.split()}
    assert set(starts) == {str(each) for each in Permission}
    rows = {line.split()[0]: line for line in lines if re.match(r" +\w+ .*x", line)}
    assert set(rows) == {str(each) for each in Role}
    for role, line in rows.items():
        told = {name for name, at in starts.items() if "x" in line[at : at + len(name)]}
        assert told == {str(each) for each in PERMISSIONS[Role(role)]}, role


def test_who_has_shown_nothing_may_everything_but_see_to_tokens() -> None:
    assert {each for each in Permission if not ANYBODY.may(each)} == {Permission.TOKENS}
    with pytest.raises(Unauthenticated, match="tokens"):
        ANYBODY.check(Permission.TOKENS)
    assert all(OWNER.may(each) for each in Permission)
