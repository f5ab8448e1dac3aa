"""Faults that are tried many times, and counted; see ``docs/reliability.md``."""
