"""Measurements of speed and memory: commands, not tests, because machines differ and are shared."""
