"""Taking a card out of the system's hands, so that it can be taken out of the reader.

A card is unmounted and no more. Its reader is not switched off: with those that take
several cards, that would take the others away from whoever copies them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from adapters.detector.mounts import CardPlaces, Mount, MountTable
from domain.errors import InvalidInput, Unavailable
from domain.footage import shown

EJECT_S = 120.0
"""What is still to be written (by others: Rushes writes nothing) may take its time."""


def eject(table: MountTable, path: str, places: CardPlaces) -> str:
    """Unmount the card at ``path``; its path, to be shown.

    ``places`` are named to who asked for something else. Raises ``InvalidInput`` if no
    card is mounted there, ``Unavailable`` with the system's own words if it can't be done.
    """
    real = os.path.realpath(path)
    mount = next((mount for mount in table.mounts() if mount.path == real), None)
    if mount is None:
        raise InvalidInput(
            f"no card is mounted at {_shown(path)}; cards are mounts below {_shown(str(places))}",
            field="path",
        )
    commands = _commands(mount)
    if not commands:
        raise Unavailable(f"{_shown(path)} can't be ejected: this system has no command for it")
    said = ""
    for command in commands:
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=EJECT_S, check=False, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
            continue
        if done.returncode == 0:
            return _shown(real)
        said = _shown(os.fsdecode((done.stderr or done.stdout).strip()))
    raise Unavailable(f"{_shown(path)} can't be ejected: {said}")


def _commands(mount: Mount) -> Sequence[Sequence[str]]:
    """What may do it, the best first."""
    if sys.platform == "darwin":
        known: list[list[str]] = [["diskutil", "eject", mount.path]]
    elif sys.platform == "win32":
        known = []  # Windows ejects from its tray only
    else:
        # udisks lets the user of the seat do it; umount is root's, or fstab's word.
        known = [["umount", "--", mount.path]]
        if mount.device.startswith("/dev/"):
            known.insert(0, ["udisksctl", "unmount", "--no-user-interaction", "-b", mount.device])
    return [command for command in known if shutil.which(command[0])]


def _shown(text: str) -> str:
    return shown(os.fsencode(text))
