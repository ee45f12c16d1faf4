"""The Filter Manager's routines under their DDI names, for filters that come from Windows (docs/writing-filters.md)."""

from stackfs.ddi.filters import *
from stackfs.ddi.instances import *
from stackfs.ddi.out import Out as Out
