"""What can go wrong between a card and a library, as one tree.

    OffloadFault
    ├── CardFault               the card's side; nothing more can be read now
    │   ├── CardNotThere        retry once it has been put in
    │   ├── NotACard            what is there is no folder
    │   ├── AnotherCard         the next card is at the same path
    │   ├── StillWritten        somebody writes to it at this moment
    │   └── CardLost            it was there when we began
    ├── LibraryFault            the library's side; nothing more can be written now
    ├── FileFault               this one file; the others may still be brought over
    └── FilesMissing            the others were brought over, these were not

A fault's text is for the person at the cart: it says what, which and why, and
names are escaped (``shown``), whatever bytes they are made of.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from application.authoring import StepError
from domain.footage import shown


class OffloadFault(StepError):
    """The root."""


class CardFault(OffloadFault):
    pass


class CardNotThere(CardFault):
    pass


class NotACard(CardFault):
    pass


class AnotherCard(CardFault):
    pass


class StillWritten(CardFault):
    pass


class CardLost(CardFault):
    pass


class LibraryFault(OffloadFault):
    pass


class FileFault(OffloadFault):
    """``path`` is the file's on the card; ``errno`` the system's reason, where there was one."""

    def __init__(self, path: bytes, why: str, errno: int | None = None) -> None:
        super().__init__(f"{shown(path)}: {why}")
        self.path = path
        self.errno = errno


MAX_NAMED = 20
MAX_NAMED_CHARACTERS = 500
"""Failed files that an error names, and of each: it goes into rows, events and terminals."""


class FilesMissing(OffloadFault):
    """``note``: what else there is to be said of the files that were wanted."""

    def __init__(
        self, faults: Sequence[FileFault], *, arrived: int, wanted: int, note: str = ""
    ) -> None:
        named = "; ".join(str(fault)[:MAX_NAMED_CHARACTERS] for fault in faults[:MAX_NAMED])
        more = f"; and {len(faults) - MAX_NAMED} more" if len(faults) > MAX_NAMED else ""
        super().__init__(
            f"{len(faults)} of {wanted} files could not be copied "
            f"({arrived} are in the library): {named}{more}" + (f"; {note}" if note else "")
        )
        self.faults = tuple(faults)


def reason(error: OSError) -> str:
    """The system's own words for it, without a path in whatever encoding."""
    return os.strerror(error.errno).lower() if error.errno else str(error)
