"""Names and directories of a mounted volume (_directories.pyx): for the filter's compiled modules."""
