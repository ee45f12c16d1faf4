"""Who may connect to a communication port (docs/semantics.md, B3.3). A plain value; whoever opens the port owns it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class SecurityDescriptor:
    """Who may connect to a port: these users, members of these groups, or everyone. Numbers, as the kernel has them.

    As it is made: the daemon's own user and root (FltBuildDefaultSecurityDescriptor). Whoever opens a port to others
    adds them. Ports of a volume that a user mounted lie in that user's own directory, which nobody else but root can
    search: there, others cannot connect, whatever this says.
    """

    users: set[int] = field(default_factory=lambda: {os.geteuid(), 0})
    groups: set[int] = field(default_factory=set)
    everyone: bool = False

    def allows(self, uid: int, groups: Iterable[int]) -> bool:
        return self.everyone or uid in self.users or not self.groups.isdisjoint(groups)

    @property
    def private(self) -> bool:
        """Nobody but the daemon's user and root."""
        return not (self.everyone or self.groups or self.users - {os.geteuid(), 0})
