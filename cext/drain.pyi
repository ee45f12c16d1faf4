"""Draining: which operations still use an instance that leaves. Nothing for Python."""
