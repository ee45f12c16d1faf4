"""Frames and legacy filters: what the stack of every volume is made of (docs/semantics.md, A1.8, A1.11).

A frame is a range of altitudes, served by one device object of the Filter Manager; minifilters lie in frames. A legacy
filter is one from before the Filter Manager: it lies on top of whatever was there when it came. There is frame 0, and
nothing above it, until a legacy filter comes. Whatever lies above is known by altitude alone then: frames' ranges grow
upwards and do not overlap, and a legacy filter's place is an altitude between two of them, that no minifilter can have.
Everything here is pure, but for the one list.
"""

from __future__ import annotations

import dataclasses

from stackfs.altitude import canonical, sort_key


class BetweenLegacyFilters(ValueError):
    """An altitude between two legacy filters with no frame between them."""


@dataclasses.dataclass(slots=True)
class Frame:
    """A frame. high: the highest altitude it takes; None: it is the uppermost layer, and takes any above its end."""

    number: int
    high: str | None = None


@dataclasses.dataclass(slots=True)
class Legacy:
    """A legacy filter. place: the altitude that says where it lies; nobody else's."""

    name: str
    place: str


class DeviceStack:
    """The layers, lowest first. One for all volumes: a legacy filter attaches to each of them alike."""

    def __init__(self) -> None:
        self.layers: list[Frame | Legacy] = [Frame(0)]

    def frame_of(self, altitude: str) -> Frame:
        """The frame that a minifilter of this altitude belongs to; a new one on top, where the uppermost layer is a
        legacy filter that it has to lie above. BetweenLegacyFilters: nothing can attach there (A1.11)."""
        key = sort_key(altitude)
        for below, layer in zip([None, *self.layers], self.layers, strict=False):
            if isinstance(layer, Frame) and (layer.high is None or key <= sort_key(layer.high)):
                return layer
            if isinstance(layer, Legacy) and isinstance(below, Legacy) and key <= sort_key(layer.place):
                raise BetweenLegacyFilters(
                    f"altitude {altitude} lies between the legacy filters {below.name!r} and {layer.name!r}: "
                    "there is no frame between them"
                )
        frame = Frame(1 + max(layer.number for layer in self.layers if isinstance(layer, Frame)))
        self.layers.append(frame)
        return frame

    def add_legacy(self, name: str, altitude: str, highest: str | None) -> Legacy:
        """A legacy filter comes, on top of everything. altitude: its own, by its load order group; highest: the highest
        one that a minifilter has. The frame below it, if there is one, takes altitudes up to the greater of the two."""
        top = self.layers[-1]
        if isinstance(top, Legacy):
            legacy = Legacy(name, just_above(top.place))
        else:
            top.high = max(filter(None, (canonical(altitude), highest)), key=sort_key)
            legacy = Legacy(name, just_above(top.high))
        self.layers.append(legacy)
        return legacy


def just_above(altitude: str) -> str:
    """An altitude that is higher by less than any that a filter has been given."""
    whole, _, fraction = canonical(altitude).partition(".")
    return f"{whole}.{fraction}{'0' * 40}1"
