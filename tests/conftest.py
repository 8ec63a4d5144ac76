"""For all tests."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """What all tests are made of stays: the collector needn't go through it in each of them."""
    gc.collect()
    gc.freeze()
