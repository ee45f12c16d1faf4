"""The verifier (docs/semantics.md, A11): finds filters that break the rules, and what they leave behind.

    the core          return statuses, contexts, buffers, levels, dead callback data      cext/verifier.pyx
    acquired()        what a filter has to give back, and where it got it, until given_back()
    instance_ends()   the manager's questions at the end of an instance, a filter, a volume
    report()          one line in the log for each finding, counted, kept for `stackfs status` and for tests

It is the process' own: on or off before filters are loaded (`-o verifier`), since an instance is enclosed when it is
made. It changes nothing that a filter does, except that a routine which is called at too high a level raises.

Any thread. One lock guards what was acquired and what was reported; nothing is called under it.
"""

from __future__ import annotations

import re
import sys
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import structlog

from stackfs.cext import verifier as core
from stackfs.cext.callback_data import major_name

if TYPE_CHECKING:
    from stackfs.filter_objects import FltObject

log = structlog.get_logger("stackfs.verifier")

KEPT: Final = 1000
"""Reports that are kept to be asked for."""

SAID: Final = 100
"""How often the log says the same of the same routine; it is counted further."""

GRACE: Final = 0.5
"""Seconds that what an instance has given back already may take to its end, in other threads."""

SHOWN: Final = 5
"""Reports that `stackfs status` shows: the last ones."""

_OF_FILTER: Final = re.compile(r"stackfs_filter_(\w+)|stackfs\.filters\.(\w+)")
"""The modules of loaded filters (stackfs/discovery.py)."""


@dataclass(frozen=True)
class Report:
    """One finding."""

    what: str
    filter: str = ""
    instance: str = ""
    routine: str = ""
    operation: str = ""
    path: str = ""
    place: str = ""
    """FILE:LINE where it was called or acquired, or where the filter's method begins; empty for native code."""

    def __str__(self) -> str:
        said = {"filter": self.filter, "instance": self.instance, "routine": self.routine,
                "operation": self.operation, "path": self.path, "place": self.place}  # fmt: skip
        return f"{self.what} ({', '.join(f'{key} {value}' for key, value in said.items() if value)})"


@dataclass(frozen=True)
class _Held:
    """Something that a filter has acquired."""

    thing: object
    """Kept, so that its number is nobody else's; None where it is not to be kept, and its owner says when it goes."""
    kind: str
    routine: str
    filter: str
    owner: Callable[[], object]
    """An instance, or the number of a registration of contexts; None: nobody but the filter."""
    place: str
    told: bool = False
    """It has been reported; it stays noted, so that the filter's end does not take it for a native one."""


_lock = threading.Lock()
_held: dict[int, _Held] = {}
_reports: deque[Report] = deque(maxlen=KEPT)
_count = 0
_said: Counter[tuple[str, ...]] = Counter()
_on = False


def enable(on: bool) -> None:
    """Switch it on or off. Instances that are there stay as they are; what was reported stays."""
    global _on
    _on = on
    core.set_watcher(_watcher if on else None)
    with _lock:
        gone = list(_held.values())
        _held.clear()
    del gone  # without the lock: whatever is freed may run code


def is_on() -> bool:
    return _on


def count() -> int:
    """How many reports there have been."""
    return _count


def take() -> list[Report]:
    """The reports kept since the last call, oldest first."""
    with _lock:
        taken = list(_reports)
        _reports.clear()
    return taken


def summary() -> dict[str, Any]:
    """For `stackfs status`."""
    with _lock:
        return {"on": _on, "errors": _count, "last": [str(each) for each in list(_reports)[-SHOWN:]]}


def report(what: str, **said: str) -> None:
    """One finding; keywords: the fields of Report."""
    global _count
    found = Report(what, **said)
    alike = (found.what, found.filter, found.routine, found.operation, found.place)
    with _lock:
        _count += 1
        _reports.append(found)
        _said[alike] += 1
        times = _said[alike]
    if times > SAID:
        return
    words = {key: value for key, value in vars(found).items() if key != "what" and value}
    if times == SAID:
        words["from_now_on"] = "this one is only counted"
    log.error(f"FILTER VERIFIER ERROR: {what}", **words)


# --- who calls, and where from ----------------------------------------------------------------------------------------

def _caller() -> tuple[str, str, str]:
    """Whoever called a routine of ours: FILE:LINE, the routine's DDI name if it has one, the filter's if it shows."""
    routine = ""
    frame = sys._getframe(1)
    place, name = "", ""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        ours = module.startswith("stackfs.") and not module.startswith("stackfs.filters.")
        if ours and module.startswith("stackfs.ddi.") and frame.f_code.co_name[:1].isupper():
            routine = frame.f_code.co_name
        if not ours and not place:
            place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        if (found := _OF_FILTER.match(module)) is not None:
            name = re.sub(r"_([0-9a-f]{2})_", lambda match: chr(int(match[1], 16)), found[1] or found[2])
            break
        frame = frame.f_back  # type: ignore[assignment]
    return place, routine, name


def _begins_at(method: Callable[..., Any] | None) -> str:
    code = getattr(getattr(method, "__func__", method), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else ""


class _Watcher:
    """What the core tells."""

    @staticmethod
    def complain(
        what: str,
        filter: str,
        instance: str,
        routine: str,
        major: int,
        path: str,
        method: Callable[..., Any] | None,
    ) -> None:
        report(what, filter=filter, instance=instance, routine=routine, operation=major_name(major), path=path,
               place=_begins_at(method))  # fmt: skip

    @staticmethod
    def complain_of_call(what: str, filter: str, instance: str, routine: str, major: int | None = None) -> None:
        place, named, module = _caller()
        report(what, filter=filter or module, instance=instance, routine=named or routine, place=place,
               operation="" if major is None else major_name(major))  # fmt: skip

    @staticmethod
    def acquired(
        thing: object, kind: str, routine: str, *, filter: str = "", owner: object = None, keep: bool = True
    ) -> None:
        acquired(thing, kind, routine, filter=filter, owner=owner, keep=keep)

    @staticmethod
    def assigned(thing: object, filter: str, owner: object) -> None:
        with _lock:
            held = _held.get(id(thing))
            if held is not None:
                _held[id(thing)] = replace(held, filter=filter, owner=_reference(owner))

    @staticmethod
    def given_back(thing: object) -> None:
        given_back(thing)


_watcher: Final = _Watcher()


def _reference(owner: object) -> Callable[[], object]:
    try:
        return weakref.ref(owner)
    except TypeError:  # a number, or None
        return lambda: owner


# --- what filters have to give back -----------------------------------------------------------------------------------

def acquired(
    thing: object, kind: str, routine: str, *, filter: str = "", owner: object = None, keep: bool = True
) -> None:
    """A filter has got something that it has to give back, by this routine; `kind` as a message says it ("a file").

    owner: the instance it belongs to; by default it is the filter's. keep: hold the thing, so that one which is
    forgotten is found; else `thing` is its address, and it says itself when it goes. Nothing happens while it is off.
    """
    if not _on:
        return
    place, named, module = _caller()
    current = core.current_instance()
    name = filter or module or (current[0] if current is not None else "")
    key = thing if isinstance(thing, int) else id(thing)
    held = _Held(thing if keep else None, kind, named or routine, name, _reference(owner), place)
    with _lock:
        _held[key] = held


def given_back(thing: object) -> None:
    with _lock:
        held = _held.pop(thing if isinstance(thing, int) else id(thing), None)
    del held


def _end(belongs: Callable[[_Held], bool], what: str, **said: str) -> Counter[str]:
    """Report everything that belongs to what ends. How many there are of each kind."""
    with _lock:
        left = {key: each for key, each in _held.items() if belongs(each)}
        for key, each in left.items():
            _held[key] = replace(each, told=True)
    for each in left.values():
        if each.told:
            continue
        references = getattr(each.thing, "references", 0)
        extent = f", with {references} references" if isinstance(references, int) and references > 1 else ""
        report(f"{each.kind} was not given back before the end of {what}{extent}", filter=each.filter or said["filter"],
               instance=said.get("instance", ""), routine=each.routine, place=each.place)  # fmt: skip
    return Counter(each.kind for each in left.values())


def holds(instance: Any) -> bool:
    """Is there something that belongs to this instance?"""
    with _lock:
        return any(each.owner() is instance and not each.told for each in _held.values())


def instance_ends(instance: Any, files_left: int = 0) -> None:
    """The teardown of an instance is complete: what belonged to it is a leak. files_left: how many had to be closed."""
    if not _on:
        return
    said = {"filter": instance.filter.name, "instance": instance.name}
    kinds = _end(lambda each: each.owner() is instance, "its instance", **said)
    native = files_left - sum(number for kind, number in kinds.items() if kind.startswith("the file "))
    if native > 0:
        report(f"{native} files were not closed before the end of their instance", routine="FltCreateFile", **said)


def filter_ends(name: str, contexts: Any, objects: Iterable[FltObject]) -> None:
    """A filter is gone: what belonged to it is a leak. contexts: its registration, or None; objects: those it may hold
    references on."""
    if not _on:
        return
    number = None if contexts is None else contexts.identity
    there = Counter() if contexts is None else Counter(contexts.outstanding)

    def belongs(each: _Held) -> bool:
        return each.filter == name or (number is not None and each.owner() == number)

    kinds = _end(belongs, "its filter", filter=name)
    with _lock:
        gone = [_held.pop(key) for key in [key for key, each in _held.items() if belongs(each)]]
    del gone  # without the lock: whatever is freed may run code
    for kind, left in there.items():
        native = left - kinds[f"a {kind} context"]
        if native > 0:
            report(f"{native} {kind} contexts were not released before the end of their filter",
                   filter=name, routine="FltAllocateContext")  # fmt: skip
    _references(objects, "was not dropped before its holder was unloaded", name)


def keep_alive(objects: Iterable[FltObject]) -> None:
    """An unload waits, and has waited long, for references on these."""
    _references(objects, "keeps a filter from being unloaded")


def volume_ends(volume: FltObject) -> None:
    """A volume is gone: a reference on it is a leak."""
    _references([volume], "was not dropped before the end of the volume")


def _references(objects: Iterable[FltObject], what: str, of: str | None = None) -> None:
    """Report the references on these objects; of: those of one filter alone."""
    if not _on:
        return
    for each in objects:
        for holder, filter, place in each.rundown.left(of):
            routine, _, where = holder.partition(" in ")
            report(f"a reference on {each} {what}", filter=filter, routine=routine, place=where or place)


def holder_of() -> tuple[str, str]:
    """Who takes a reference, and where: filter's name, FILE:LINE."""
    place, _, module = _caller()
    current = core.current_instance()
    return module or (current[0] if current is not None else ""), place
