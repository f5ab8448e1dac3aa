"""The synthetic slides of the demonstration: how they are drawn, and how they are told from scanned ones."""
