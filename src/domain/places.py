"""Where footage goes in a library: the layout, as a person writes it, and what comes of it.

    {date}_{card}                 2026-11-22_A001/DCIM/100GOPRO/GX010001.MP4
    {year}/{date}/{card}          2026/2026-11-22/A001/DCIM/100GOPRO/GX010001.MP4
    {date}/{card}/{clip}          2026-11-22/A001/GX010001/GX010001.MP4
    {card}/{clip_date}/{path}     A001/2026-11-21/DCIM/100GOPRO/GX010001.MP4

A layout names folders. Those before the first that differs from file to file are the
*job's folder*: it is one job's alone, so that its manifests can stand there and answer for
all that is below. What comes after it sorts files. With ``{path}``, or where nothing sorts,
files keep the folders that they have on the card; without it they lie where the layout
says, and two of one name stand beside one another by the rule of ``domain.names``.

A card that makes sense only whole (``WHOLE``) is never sorted: below the job's folder it is
as it came. So is a file for which a field says nothing, as a clip's of one that belongs to
no clip.

Whatever a field says becomes part of one component that every file system takes: letters,
digits, ``-``, ``_`` and ``.``, composed (NFC), of at most ``MAX_COMPONENT_BYTES``, no
device of Windows' and no name that means something here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from domain.footage import CardFile, is_junk
from domain.layouts import Layout
from domain.names import is_device

DEFAULT_LAYOUT = "{date}_{card}"

AS_ON_THE_CARD = "{path}"
"""What sorts nothing."""

JOB_FIELDS = {
    "date": "the local day on which the card came in, 2026-11-22",
    "year": "2026",
    "month": "11",
    "day": "22",
    "time": "the local time at which it did, 1432",
    "card": "the card's label",
    "maker": "whose card it is, GoPro, by its layout; 'unknown' if that isn't one maker's",
}
FILE_FIELDS = {
    "clip": "the clip that the file belongs to, by the name of its first file",
    "kind": "media, proxy, thumbnail, sidecar, metadata or other",
    "clip_date": "the day of the clip's first file, or of a file without a clip",
    "path": "the folders that the file has on the card; only by itself, at the end",
}

MAX_COMPONENT_BYTES = 100
"""Leaves room for a ``-2``, and for the paths below where the whole path is counted."""

MAX_LAYOUT_CHARACTERS = 200
MAX_LEVELS = 8
MAX_LITERAL_BYTES = 40
"""Of what stands in one component beside its fields, so that there is room for these."""

RESERVED = frozenset({"ascmhl", "reports"})
"""Names that mean something in a library and in a job's folder."""

WHOLE = frozenset(Layout) - {
    Layout.GOPRO,
    Layout.GOPRO_360,
    Layout.DJI,
    Layout.INSTA360,
    Layout.CANON,
    Layout.BLACKMAGIC,
    Layout.DCIM,
    Layout.UNKNOWN,
}
"""Layouts whose files refer to one another by their places."""

_NO_MAKER = frozenset({Layout.DCIM, Layout.UNKNOWN})
_FIELD = re.compile(r"\{([^{}/]*)\}")
_SAFE_CATEGORIES = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Nd"})
"""Letters with their marks, and digits, of every script."""

_IF_EMPTY = {"card": "card", "clip": "clip", "maker": "unknown"}


@dataclass(frozen=True, slots=True)
class Template:
    """A layout that was understood. job: the components of the job's folder; files: the rest."""

    job: tuple[str, ...]
    files: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Raises ``ValueError``, saying what is wrong, and with which part of it."""
        if len(text) > MAX_LAYOUT_CHARACTERS:
            raise ValueError(f"a layout has at most {MAX_LAYOUT_CHARACTERS} characters")
        if not text.strip():
            raise ValueError("a layout names at least one folder, as {date}_{card} does")
        if text.startswith("/"):
            raise ValueError(f"{text!r} is absolute: a layout names folders below the library")
        components = tuple(text.split("/"))
        if len(components) > MAX_LEVELS:
            raise ValueError(f"{text!r} is {len(components)} folders deep, more than {MAX_LEVELS}")
        for component in components:
            _check(text, component)
        sorting = [bool(_fields(each) & FILE_FIELDS.keys()) for each in components]
        first = sorting.index(True) if True in sorting else len(components)
        job, files = components[:first], components[first:]
        if not any(_fields(each) for each in job):
            raise ValueError(
                f"{text!r} gives no job a folder of its own: begin with one of "
                f"{_listed(JOB_FIELDS)}, before what differs from file to file"
            )
        if AS_ON_THE_CARD in files[:-1]:
            raise ValueError(f"{text!r}: {AS_ON_THE_CARD} stands at the end")
        return cls(job, files)

    def job_name(self, values: Mapping[str, str]) -> str:
        """The job's folder, ``/`` between its components. values: by ``job_values``."""
        return "/".join(_rendered(component, values) for component in self.job)

    def sorting(self, values: Mapping[str, str], layouts: Iterable[str]) -> str:
        """How this card's files are sorted below the job's folder; to be kept with the job.

        layouts: what the scan took the card for.
        """
        if not self.files or WHOLE.intersection(layouts):
            return AS_ON_THE_CARD
        return "/".join(_filled(component, values) for component in self.files)


def job_values(now: datetime, label: str, layouts: Sequence[str]) -> Mapping[str, str]:
    """What the fields of a job say. now: in the zone that its days are told in."""
    makers = [each for each in layouts if each not in _NO_MAKER]
    return {
        "date": f"{now:%Y-%m-%d}",
        "year": f"{now:%Y}",
        "month": f"{now:%m}",
        "day": f"{now:%d}",
        "time": f"{now:%H%M}",
        "card": label,
        "maker": makers[0] if len(makers) == 1 else "",
    }


class Places:
    """Where each file of a card goes, below its job's folder.

    sorting: by ``Template.sorting``. utc_offset_s: of the zone that a clip's day is told in.
    """

    def __init__(self, sorting: str, utc_offset_s: int, inventory: Iterable[CardFile]) -> None:
        components = tuple(sorting.split("/"))
        self.are_as_on_the_card = components == (AS_ON_THE_CARD,)
        self._keeps_path = components[-1] == AS_ON_THE_CARD
        self._components = components[:-1] if self._keeps_path else components
        self._fields = frozenset[str]().union(*map(_fields, self._components))
        self._offset = timedelta(seconds=utc_offset_s)
        self._times = (
            {file.path: file.mtime_ns for file in inventory if file.path == file.clip}
            if "clip_date" in self._fields
            else {}
        )
        self._folders: dict[tuple[str, ...], bytes] = {}

    def of(self, file: CardFile) -> bytes:
        """Its path there."""
        if self.are_as_on_the_card or (file.clip is None and "clip" in self._fields):
            return file.path
        clip = b"" if file.clip is None else file.clip
        values = {
            "clip": _stem(clip) if "clip" in self._fields else "",
            "kind": file.kind.value,
            "clip_date": self._day(file) if "clip_date" in self._fields else "",
        }
        key = tuple(values.values())
        if key not in self._folders:
            rendered = "/".join(_rendered(component, values) for component in self._components)
            self._folders[key] = rendered.encode()
        kept = file.path if self._keeps_path else file.path.rpartition(b"/")[2]
        return self._folders[key] + b"/" + kept

    def _day(self, file: CardFile) -> str:
        mtime_ns = self._times.get(file.clip or b"", file.mtime_ns)
        try:
            at = datetime.fromtimestamp(mtime_ns // 1_000_000_000, UTC) + self._offset
        except (ValueError, OverflowError, OSError):
            return "undated"  # file systems hold what they were given
        return f"{at:%Y-%m-%d}"


def _check(text: str, component: str) -> None:
    where = f"{text!r}: {component!r}" if component != text else repr(text)
    if not component:
        raise ValueError(f"{text!r} has an empty folder name (a / too many)")
    if component in (".", ".."):
        raise ValueError(f"{text!r} must not lead elsewhere with {component!r}")
    for name in _FIELD.findall(component):
        if name not in JOB_FIELDS and name not in FILE_FIELDS:
            raise ValueError(
                f"{text!r}: {{{name}}} is no field (there are {_listed(JOB_FIELDS)} of a job, "
                f"{_listed(FILE_FIELDS)} of a file)"
            )
    if AS_ON_THE_CARD in component and component != AS_ON_THE_CARD:
        raise ValueError(f"{where}: {AS_ON_THE_CARD} stands by itself")
    literal = _FIELD.sub("", component)
    for character in literal:
        if character != " " and not _is_safe(character):
            raise ValueError(f"{where} holds {character!r}, which not every disk takes in a name")
    if len(literal.encode()) > MAX_LITERAL_BYTES:
        raise ValueError(f"{where} has more than {MAX_LITERAL_BYTES} bytes beside its fields")
    if component.startswith((".", " ")) or component.endswith((".", " ")):
        raise ValueError(f"{where} begins or ends with a dot or a space")
    if _means_something(component):
        raise ValueError(f"{where} is a name that has a meaning of its own")


def _listed(fields: Iterable[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in fields)


def _fields(component: str) -> frozenset[str]:
    return frozenset(_FIELD.findall(component))


def _filled(component: str, values: Mapping[str, str]) -> str:
    """With what is known of the job; the fields of files stay, for each file to say."""
    fields = _fields(component)
    if not fields & FILE_FIELDS.keys():
        return _rendered(component, values)
    room = (MAX_COMPONENT_BYTES - MAX_LITERAL_BYTES) // len(fields)
    return _FIELD.sub(
        lambda field: (
            field[0]
            if field[1] in FILE_FIELDS
            else _safe(values[field[1]], room) or _IF_EMPTY[field[1]]
        ),
        component,
    )


def _rendered(component: str, values: Mapping[str, str]) -> str:
    """One component that every file system takes."""
    pieces = _FIELD.split(component)  # literals, and the names of fields between them
    names = pieces[1::2]
    literal_bytes = sum(len(each.encode()) for each in pieces[::2])
    room = (MAX_COMPONENT_BYTES - literal_bytes) // max(1, len(names))
    fixed = [name for name in names if name not in _IF_EMPTY]
    if len(fixed) < len(names):  # what is short leaves its room to what may be long
        taken = literal_bytes + sum(len(values[name].encode()) for name in fixed)
        room = (MAX_COMPONENT_BYTES - taken) // (len(names) - len(fixed))
    pieces[1::2] = [
        values[name] if name in fixed else _safe(values[name], room) or _IF_EMPTY[name]
        for name in names
    ]
    text = unicodedata.normalize("NFC", "".join(pieces))
    return f"_{text}" if _means_something(text) else text


def _safe(value: str, room: int) -> str:
    """As much of it as every file system takes."""
    # Composed, because some file systems hold that form of a letter and the other to be one.
    text = unicodedata.normalize("NFC", value)
    safe = "".join(character if _is_safe(character) else "_" for character in text)
    return safe.strip("_.-").encode()[:room].decode("utf-8", "ignore").rstrip("_.-")


def _is_safe(character: str) -> bool:
    return character in "-_." or unicodedata.category(character) in _SAFE_CATEGORIES


def _means_something(text: str) -> bool:
    return text.casefold() in RESERVED or is_device(text) or is_junk(text.encode())


def _stem(path: bytes) -> str:
    name = path.rpartition(b"/")[2].decode("utf-8", "replace")
    stem, dot, _ = name.rpartition(".")
    return stem if dot else name
