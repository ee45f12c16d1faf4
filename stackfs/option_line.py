"""The language of ``-o``: what can be said there, and what this release makes of it.

``-o`` takes options separated by commas, and may be repeated; a comma within a value is written ``\\,`` and a backslash
before a comma or a backslash ``\\\\`` (any other backslash is itself). Of an option given twice the last one holds,
except for filter and filterdir, which add up. What is accepted is a contract that scripts rely on: an option whose
feature is not in this release is refused by name, an unknown one with the nearest known one; nothing is silently
dropped but what /etc/fstab says to others (noauto, user, x-...). Nothing here keeps state.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from stackfs.errors import UsageError
from stackfs.manifest import NAME, parse_size
from stackfs.mount_flags import BY_OPTION, MountFlags

IGNORED: Final = frozenset(
    {
        *("auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "nousers", "owner", "noowner"),
        *("group", "nogroup", "defaults", "silent", "loud"),
    }
)
"""Said by /etc/fstab to mount(8), systemd and others. Also every x-..., X-..., comment=... and user=...."""

MIN_WRITE: Final = 4096
MAX_WRITE: Final = 1 << 20
"""Bounds of max_write, in bytes: a page, and what the kernel's FUSE caps it at. A multiple of a page."""

CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "cache": ("normal", "strict"),
    "bypass": ("auto", "off"),
    "lanes": ("auto", "irp"),
    "permissions": ("kernel", "stack"),
    "locks": ("kernel", "stack"),
    "coherence": ("none", "lease"),
}
"""Options of few values: those this release has, the default first (of locks, where nobody sees them)."""

SWITCHES: Final = ("allow_other", "exclusive", "writeback", "default_permissions", "verifier")
"""Options without a value, off unless they are said."""

_HINTS: Final = {
    "allow_root": "use allow_other",
    "nonempty": "stackfs mounts on an empty directory only",
    "remount": "stackfs cannot remount: unmount and mount again",
    "big_writes": "leave it out, it is always on",
    "auto_unmount": "leave it out: 'stackfs umount', or the next mount, clears what a killed daemon left",
}


class Origin(NamedTuple):
    """Where an option was written."""

    base: str
    """The directory that relative paths are relative to."""
    where: str
    """"FILE:LINE", or empty for the command line."""


class FilterValue(NamedTuple):
    """The VALUE of NAME.KEY=VALUE as written; the filter's manifest gives it its type."""

    text: str
    origin: Origin


@dataclasses.dataclass(slots=True)
class MountOptions(MountFlags):
    """Everything ``-o`` can say, parsed. The mount flags are inherited."""

    allow_other: bool = False
    exclusive: bool = False
    """Nothing but this mount changes the backing directory: the kernel may trust what it knows for long."""
    writeback: bool = False
    """Writes stay in the page cache until it writes them back."""
    verifier: bool = False
    """Hold filters to the rules, and tell what they break or leave behind (stackfs/verifier.py)."""
    default_permissions: bool = False
    """Said in so many words; it means permissions=kernel."""
    fsname: str | None = None
    """What mount(8) shows as the source; None: the backing directory."""
    subtype: str = "stackfs"
    max_write: int | None = None
    """Bytes; None: as large as the device allows."""
    cache: str = "normal"
    bypass: str = "auto"
    lanes: str = "auto"
    permissions: str = "kernel"
    """Who checks them: the kernel, before the stack, or the base of the stack, as the caller."""
    locks: str | None = None
    """None: stack if an instance that the volume TOML names registers LOCK_CONTROL, else kernel."""
    coherence: str = "none"
    """lease: changes made beside the mount are noticed (stackfs/coherence.py)."""
    filters: dict[str, str] = dataclasses.field(default_factory=dict)
    """filter=NAME, in the order given, and where: "-o filter=NAME", or "FILE:LINE". The filter's default instance."""
    raw: bool = False
    """filter=raw: mount a marked volume without the filters it needs."""
    filter_values: dict[str, dict[str, FilterValue]] = dataclasses.field(default_factory=dict)
    """NAME.KEY=VALUE, by filter and key."""
    filter_dirs: list[str] = dataclasses.field(default_factory=list)
    """filterdir=DIR, absolute."""
    source: str | None = None
    """source=DIR, absolute: instead of the source that a volume TOML names."""


def split(text: str) -> Iterator[str]:
    """The options of one ``-o`` string, escapes still in them; empty ones are left out."""
    start = at = 0
    while at < len(text):
        if text[at] == "," and at > start:
            yield text[start:at]
        if text[at] == ",":
            start = at + 1
        at += 2 if text[at] == "\\" and text[at + 1 : at + 2] in ("\\", ",") else 1
    if text[start:]:
        yield text[start:]


def unescape(text: str) -> str:
    """A value with ``\\,`` and ``\\\\`` undone."""
    pieces, at = [], 0
    while at < len(text):
        if text[at] == "\\" and text[at + 1 : at + 2] in ("\\", ","):
            at += 1
        pieces.append(text[at])
        at += 1
    return "".join(pieces)


def parse_options(strings: Sequence[str]) -> MountOptions:
    """The option strings of a command line, parsed. UsageError: one line that names the option and says what to do."""
    options = MountOptions()
    for string in strings:
        add_options(options, string)
    return options


def add_options(options: MountOptions, string: str, base: str | None = None, where: str = "") -> None:
    """Parse one option string into ``options``, over what is there already. UsageError as parse_options.

    base: what relative paths are relative to (default: the current directory). where: "FILE:LINE" of the string.
    """
    try:
        for option in split(string):
            _add_option(options, option, Origin(base or os.getcwd(), where))
        _check_permissions(options)
    except UsageError as error:
        raise UsageError(f"{where}: {error}" if where else error.message) from None


def _add_option(options: MountOptions, option: str, origin: Origin) -> None:
    if "\0" in option or "\n" in option:
        raise UsageError(f"option {option!r}: a newline or NUL cannot be in an option")
    raw_key, equals, raw_value = option.partition("=")
    key, value = unescape(raw_key), unescape(raw_value) if equals else None
    if key in IGNORED or key == "comment" or key.startswith(("x-", "X-")):
        return
    if key in BY_OPTION:
        _no_value(key, value)
        flag, on = BY_OPTION[key]
        setattr(options, flag.field, on)
    elif key in SWITCHES:
        _no_value(key, value)
        setattr(options, key, True)
    elif key in CHOICES:
        if value not in CHOICES[key]:
            raise UsageError(f"option {option!r}: {key} is {_one_of(CHOICES[key])}")
        setattr(options, key, value)
    elif key in _WITH_VALUE:
        if not value:
            raise UsageError(f"option {key!r} needs a value: {key}=...")
        _WITH_VALUE[key](options, value, origin)
    elif "." in key:
        name, _, setting = key.rpartition(".")
        if not NAME.fullmatch(name) or not setting:
            raise UsageError(f"option {option!r}: a filter's option is written NAME.KEY=VALUE")
        options.filter_values.setdefault(name, {})[setting] = FilterValue("yes" if value is None else value, origin)
    else:
        raise UsageError(f"option {option!r} is not known{_hint(key)}")


def _check_permissions(options: MountOptions) -> None:
    if options.permissions != "stack":
        return
    if options.default_permissions:
        raise UsageError("options 'permissions=stack' and 'default_permissions' exclude each other: leave one out")
    if options.dev:
        raise UsageError(
            "options 'permissions=stack' and 'dev' exclude each other: the kernel opens device files without asking "
            "anybody: leave one out"
        )


def _no_value(key: str, value: str | None) -> None:
    if value is not None:
        raise UsageError(f"option {key!r} takes no value: write {key!r} alone")


def _one_of(choices: Sequence[str]) -> str:
    return " or ".join(choices) + ("" if len(choices) > 1 else " in this release")


def _hint(key: str) -> str:
    if key in _HINTS:
        return f": {_HINTS[key]}"
    names = [*BY_OPTION, *CHOICES, *_WITH_VALUE, *SWITCHES, *IGNORED]
    near = difflib.get_close_matches(key, names, n=1)
    return f": did you mean {near[0]!r}?" if near else " (a filter's option is written NAME.KEY=VALUE)"


def _set_filter(options: MountOptions, value: str, origin: Origin) -> None:
    if value == "raw":
        options.raw = True
        return
    if not NAME.fullmatch(value):
        raise UsageError(f"option 'filter={value}': a filter's name is 1 to 64 of A-Z a-z 0-9 _ . -")
    if value in options.filters:
        raise UsageError(f"option 'filter={value}' is given twice: an instance's name is unique on a volume")
    options.filters[value] = origin.where or f"-o filter={value}"


def _set_filter_dir(options: MountOptions, value: str, origin: Origin) -> None:
    options.filter_dirs.append(_absolute(value, origin.base))


def _set_source(options: MountOptions, value: str, origin: Origin) -> None:
    options.source = _absolute(value, origin.base)


def _set_fsname(options: MountOptions, value: str, origin: Origin) -> None:
    options.fsname = value


def _set_subtype(options: MountOptions, value: str, origin: Origin) -> None:
    if not NAME.fullmatch(value):
        raise UsageError(f"option 'subtype={value}': 1 to 64 of A-Z a-z 0-9 _ . -")
    options.subtype = value


def _set_max_write(options: MountOptions, value: str, origin: Origin) -> None:
    try:
        size = parse_size(value)
    except ValueError as error:
        raise UsageError(f"option 'max_write={value}': {error}") from None
    if not MIN_WRITE <= size <= MAX_WRITE or size % MIN_WRITE:
        raise UsageError(f"option 'max_write={value}': a multiple of 4K, from 4K to 1M")
    options.max_write = size


_WITH_VALUE: Final[dict[str, Callable[[MountOptions, str, Origin], None]]] = {
    "filter": _set_filter,
    "filterdir": _set_filter_dir,
    "fsname": _set_fsname,
    "subtype": _set_subtype,
    "max_write": _set_max_write,
    "source": _set_source,
}


def _absolute(path: str, base: str) -> str:
    return os.path.normpath(os.path.join(base, os.path.expanduser(path)))
