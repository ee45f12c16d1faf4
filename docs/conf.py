"""Sphinx: `make docs` builds docs/_build from the Markdown pages here."""

import tomllib
from pathlib import Path

_project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]

project = _project["name"]
author = "stackfs contributors"
project_copyright = f"2026, {author}"
version = release = _project["version"]

extensions = ["myst_parser"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]       # links to folders of the tree; tests/test_house.py follows them
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"stackfs {release}"
