"""Measurements and the demo: `stackfs bench` (make bench), and demo.py (make run).

bench plans and runs, sides says what is measured and mounts it, jobs runs the loads in processes of their own, targets
has the table that must hold, report does the arithmetic and the tables, chart the pictures. filters/ are drop-ins of
the benchmark's own, and plain_pyfuse3 is the other side of many ratios: a filesystem as one writes it with pyfuse3 and
nothing else. request_cost times requests without a mount. docs/performance.md says what each figure means.

The folder is imported as stackfs.benchmarks (setup.py makes the link).
"""
