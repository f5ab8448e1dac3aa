"""``make demo`` and ``make compare-demo``: shipped commands, run in turn on synthetic slides. No room imports it."""
