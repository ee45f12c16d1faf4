"""What a power cut may leave of what tests/fault.py has written down.

A file's bytes reach the disk in any order, each write as a whole or, where that is asked for, page by page, until the
file is synced. For names, attributes and modes there are two kinds of file systems:

    journal (ext4, XFS)    they reach the disk in the order in which they were made; a sync of an inode takes along what
                           was made until the last change of that inode's own
    log (btrfs, F2FS)      the same; and beyond that point, what was synced: a directory's names when it is synced, and,
                           or not, the name of a file that was synced

So a rename is there or not, as a whole (and it is when one of its directories is synced). Sizes
are bytes. A state is built in a directory as files like any others; links, modes and attributes included.
"""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Inode = tuple[int, int]
Model = Literal["journal", "log"]
PAGE = 4096
DATA = ("write", "resize", "punch")
NAMES = ("names", "attribute", "mode")


@dataclass(slots=True)
class Stored:
    """An inode as it is built."""

    mode: int
    uid: int
    gid: int
    target: bytes | None
    data: bytearray = field(default_factory=bytearray)
    attributes: dict[bytes, bytes] = field(default_factory=dict)
    names: dict[bytes, Inode] = field(default_factory=dict)

    def write(self, offset: int, data: bytes) -> None:
        self.data.extend(bytes(max(0, offset - len(self.data))))
        self.data[offset : offset + len(data)] = data

    def resize(self, size: int) -> None:
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))

    def punch(self, offset: int, length: int) -> None:
        end = min(offset + length, len(self.data))
        self.data[offset:end] = bytes(max(0, end - offset))


@dataclass(frozen=True, slots=True)
class Choice:
    """Which changes, of those that are not durable, have reached the disk: their numbers; `torn`: of a write, pages."""

    end: int
    """What came from here on had not happened."""
    kept: frozenset[int]
    torn: tuple[tuple[int, frozenset[int]], ...] = ()


class Recording:
    """The records of a log. Positions, in bytes, are what os.stat() said of the log at some moment."""

    def __init__(self, log: Path) -> None:
        self.records: list[Any] = []
        self.positions: list[int] = []
        with log.open("rb") as file:
            while True:
                self.positions.append(file.tell())
                try:
                    self.records.append(pickle.load(file))
                except EOFError:
                    break
        self.begin = self.records.index(("sync-volume",)) + 1
        self.root: Inode = self.records[0][1]

    def at(self, position: int) -> int:
        """The number of the record that begins there."""
        return self.positions.index(position)

    # --- what is on the disk for sure

    def durable(self, end: int, model: Model) -> tuple[set[int], int]:
        """The numbers of the changes before `end` that a power cut cannot take back; and a number: names that were
        changed before it are among them, in order."""
        synced: set[Inode] = set()
        everything = ordered = 0
        sure: set[int] = set()
        last_touch: dict[Inode, int] = {}
        for number in range(self.begin, end):
            kind, *what = self.records[number]
            if kind in NAMES:
                for inode in self.touched(number):
                    last_touch[inode] = number + 1
            elif kind == "sync":
                ordered = max(ordered, last_touch.get(what[0], 0))
            elif kind == "sync-volume":
                ordered = number
        for number in reversed(range(self.begin, end)):
            kind, *what = self.records[number]
            if kind == "sync-volume":
                everything = everything or number
            elif kind == "sync":
                synced.add(what[0])
            elif kind in DATA:
                if everything or what[0] in synced:
                    sure.add(number)
            elif kind in NAMES:
                directories = {each[0] for each in what[0]} if kind == "names" else {what[0]}
                if everything or (model == "journal" and number < ordered) or (
                    model == "log" and directories & synced
                ):
                    sure.add(number)
        return sure, ordered if model == "journal" else everything

    def named(self, number: int) -> set[Inode]:
        """What gets a name there."""
        kind, *what = self.records[number]
        return {each[2] for each in what[0] if each[2] is not None} if kind == "names" else set()

    def touched(self, number: int) -> set[Inode]:
        kind, *what = self.records[number]
        if kind == "names":
            return {each[0] for each in what[0]} | {each[2] for each in what[0] if each[2] is not None}
        return {what[0]}

    # --- choices

    def choices(self, rng: random.Random, model: Model, begin: int, *, torn: bool = False) -> Iterator[Choice]:
        """Without end; no power cut before record number `begin`."""
        while True:
            end = rng.randrange(begin, len(self.records) + 1)
            sure, ordered = self.durable(end, model)
            loose = [n for n in range(self.begin, end) if n not in sure and self.records[n][0] in DATA]
            names = [n for n in range(max(ordered, self.begin), end) if n not in sure and self.records[n][0] in NAMES]
            cut = rng.choice(names) if names and rng.random() < 0.7 else rng.choice((ordered, end))
            kept = set(sure) | {n for n in names if n < cut}
            if model == "log":
                synced = {self.records[n][1] for n in range(cut, end) if self.records[n][0] == "sync"}
                kept |= {n for n in names if n >= cut and self.named(n) & synced and rng.random() < 0.5}
            pieces: list[tuple[int, frozenset[int]]] = []
            how = rng.randrange(5)
            if how == 0:
                kept |= set(loose)
            elif how == 1 and loose:
                kept |= set(loose) - {rng.choice(loose)}
            elif how == 2 and loose:
                kept.add(rng.choice(loose))
            elif how == 3:
                share = rng.random()
                kept |= {n for n in loose if rng.random() < share}
            if torn:
                long = [n for n in loose if self.records[n][0] == "write" and len(self.pages(n)) > 1]
                for number in rng.sample(long, min(len(long), 2)):
                    pages = self.pages(number)
                    kept.add(number)
                    pieces.append((number, frozenset(rng.sample(pages, rng.randrange(1, len(pages))))))
            yield Choice(end, frozenset(kept), tuple(sorted(pieces)))

    def pages(self, number: int) -> list[int]:
        _, _, offset, data = self.records[number]
        return list(range(offset // PAGE, (offset + len(data) - 1) // PAGE + 1))

    # --- states

    def inodes(self, choice: Choice) -> dict[Inode, Stored]:
        found: dict[Inode, Stored] = {}
        torn = dict(choice.torn)
        for number, (kind, *what) in enumerate(self.records[: choice.end]):
            if kind == "inode":
                found[what[0]] = Stored(*what[1:])
            if number >= self.begin and number not in choice.kept:
                continue
            if kind == "write" and number in torn:
                inode, offset, data = what
                for page in torn[number]:
                    begin, end = max(offset, page * PAGE), min(offset + len(data), (page + 1) * PAGE)
                    found[inode].write(begin, data[begin - offset : end - offset])
            elif kind in DATA:
                getattr(found[what[0]], kind)(*what[1:])
            elif kind == "names":
                for directory, name, inode in what[0]:
                    if inode is None:
                        found[directory].names.pop(name, None)
                    else:
                        found[directory].names[name] = inode
            elif kind == "attribute":
                inode, name, value = what
                if value is None:
                    found[inode].attributes.pop(name, None)
                else:
                    found[inode].attributes[name] = value
            elif kind == "mode":
                found[what[0]].mode, found[what[0]].uid, found[what[0]].gid = what[1:]
        return found

    def build(self, choice: Choice, place: Path) -> None:
        """The state, in an empty directory."""
        inodes = self.inodes(choice)
        done: dict[Inode, bytes] = {}
        self._fill(inodes, self.root, os.fsencode(place), done)

    def _fill(self, inodes: dict[Inode, Stored], inode: Inode, place: bytes, done: dict[Inode, bytes]) -> None:
        for name, child in inodes[inode].names.items():
            path, stored = place + b"/" + name, inodes[child]
            if child in done:
                if not os.path.isdir(done[child]):       # a directory has one name; a cut leaves it where it was first
                    os.link(done[child], path, follow_symlinks=False)
                continue
            done[child] = path
            if stored.target is not None:
                os.symlink(stored.target, path)
                continue
            if stored.mode & 0o170000 == 0o040000:
                os.mkdir(path)
                self._fill(inodes, child, path, done)
            else:
                with open(path, "wb") as file:
                    file.write(stored.data)
            os.chmod(path, stored.mode & 0o7777)
            for attribute, value in stored.attributes.items():
                os.setxattr(path, attribute, value)
        for attribute, value in inodes[inode].attributes.items():
            if inode == self.root:
                os.setxattr(place, attribute, value)
