"""Before a byte is copied: whether everything can go where it is to go.

All that is wrong is said at once. What a crash has left in the job's folder is cleared
away on the way, so that the room that it takes is free, and what can be gone on with is
found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from adapters.steps import kernel
from adapters.steps.cards import OpenCard
from adapters.steps.copy_destinations import Destination, Destinations, split
from adapters.steps.copy_stock import Stock
from adapters.steps.faults import FileFault, LibraryFault
from adapters.steps.library import Folder, Library, Room
from adapters.steps.parts import Lane, is_resumed
from domain.footage import CardFile


def misplaced(libraries: Sequence[Library], card: OpenCard) -> Mapping[Lane, Sequence[str]]:
    """What is wrong with destinations as places."""
    found: dict[Lane, Sequence[str]] = {}
    for number, library in enumerate(libraries):
        problems = []
        try:
            library.refuse_card(card)
            folder = library.look()
            if folder is not None:
                kernel.close(folder.fd)
        except LibraryFault as fault:
            problems.append(str(fault))
        others = [*libraries[:number], *libraries[number + 1 :]]
        beside = library.problem_beside(others)
        if beside is not None:
            problems.append(beside)
        if problems:
            found[number] = problems
    return found


def prepare(
    stock: Stock,
    destinations: Destinations,
    job_name: bytes,
    misplaced: Mapping[Lane, Sequence[str]],
) -> None:
    """Look at every destination that is to get something, and open the job's folder there.

    Raises ``LibraryFault`` with all that stands in the way. misplaced: destinations that
    are out of the question, and why.
    """
    problems = [problem for each in misplaced.values() for problem in each]
    rooms: dict[int, list[tuple[str, int, Room]]] = {}
    for destination in destinations.all:
        if not destination.new or destination.lane in misplaced:
            continue
        place = destination.library.text
        try:
            with destination.library.open() as root:
                largest = max(
                    (file for file in stock.new if file.path in destination.new),
                    key=lambda file: file.size_bytes,
                )
                found = root.problems((largest.path, largest.size_bytes))
                problems += found
                if found:
                    continue
                sizes, kept_bytes = _needed(stock, destination, root, job_name)
                room = root.room(sizes)
                room = Room(
                    room.device,
                    max(0, room.needed_bytes - kept_bytes),
                    room.reserve_bytes,
                    room.free_bytes,
                )
                if sizes:
                    rooms.setdefault(room.device, []).append((place, len(sizes), room))
        except LibraryFault as fault:
            problems.append(str(fault))
    for together in rooms.values():
        places, counts, each = zip(*together, strict=True)
        room = Room(
            each[0].device,
            sum(one.needed_bytes for one in each),
            each[0].reserve_bytes,
            each[0].free_bytes,
        )
        problem = room.problem(places, sum(counts))
        if problem is not None:
            problems.append(problem)
    if problems:
        raise LibraryFault(_together(problems))
    for destination in destinations.all:
        if destination.new:
            try:
                destination.open(job_name)
                destination.number(stock.wanted, stock.places, job_name)
            except LibraryFault as fault:
                destinations.lose(destination.lane, fault)


def _needed(
    stock: Stock, destination: Destination, root: Folder, job_name: bytes
) -> tuple[list[int], int]:
    """The sizes of the files that aren't there, and what is there of them already."""
    sizes: list[int] = []
    kept_bytes = 0
    job_folder = root.find(job_name)
    if job_folder is None:
        return [file.size_bytes for file in stock.new if file.path in destination.new], 0
    destination.job_folder = job_folder
    by_folder = stock.new_by_folder()
    ours: dict[bytes, set[bytes]] = {path: set() for path in by_folder}
    for file in stock.wanted:
        path, name = split(stock.places.of(file))
        if path in ours:
            ours[path].add(name)
    try:
        destination.number(stock.wanted, stock.places, job_name)
        for path, files in by_folder.items():
            missing = [file for file in files if file.path in destination.new]
            folder = job_folder.find(destination.folder_path(path))
            if folder is None:
                sizes += [file.size_bytes for file in missing]
                continue
            with folder:
                large: dict[bytes, CardFile] = {}
                absent = []
                names = set(ours[path])
                for file in files:
                    candidates = list(destination.names(file.path))
                    names.update(candidates)
                    if file.path not in destination.new:
                        continue
                    with suppress(FileFault):
                        if folder.status(candidates[0], file.path) is None:
                            absent.append(file)
                            if is_resumed(file):
                                large[candidates[0]] = file
                for name, left in folder.remove_leftovers(names, large).items():
                    destination.left[large[name].path] = left.name
                    kept_bytes += left.room_bytes
                sizes += [file.size_bytes for file in absent]
    finally:
        destination.job_folder = None
        kernel.close(job_folder.fd)
    return sizes, kept_bytes


def _together(problems: Sequence[str]) -> str:
    """As one sentence, if it is one problem."""
    each = list(dict.fromkeys(problems))
    if len(each) == 1:
        return each[0]
    return f"nothing was copied, for {len(each)} reasons: " + "; ".join(
        f"({number}) {problem}" for number, problem in enumerate(each, start=1)
    )
