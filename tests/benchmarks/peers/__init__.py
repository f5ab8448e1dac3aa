"""Extraction by other tools, each in its own environment, beside ours: ``docs/peers.md`` says how to set them up."""
