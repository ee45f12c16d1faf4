"""Reparse points of regular files and directories (docs/semantics.md, B5.3)."""
