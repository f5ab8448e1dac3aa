"""The making of the distributable bundle: packing it, and checking it against the rules of the Model Zoo.

Nothing of this is inside the distributable.
"""
