"""Opens any slide, and reads a region of it at any magnification.

The process that reads slides imports this package: nothing is imported here.
"""
