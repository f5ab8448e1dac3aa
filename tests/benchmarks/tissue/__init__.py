"""The comparison on slides that are made of real H&E fields whose classes are known: ``docs/evidence.md``."""
