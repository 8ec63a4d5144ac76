"""``pytest --hypothesis-profile long tests/domain`` looks for minutes instead of seconds."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("long", max_examples=20_000, deadline=None)
