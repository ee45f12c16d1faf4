"""Measurements and the demo: `python -m benchmarks` (make bench), `python -m benchmarks.demo` (make run).

plain_pyfuse3 is the other side of every ratio: a filesystem as one writes it with pyfuse3 and nothing else.
mounts puts either side on a temporary directory, jobs runs the loads in processes of their own, report does the
arithmetic and the table. docs/performance.md says what each figure means.
"""
