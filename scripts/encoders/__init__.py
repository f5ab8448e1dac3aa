"""Frozen patch encoders, by name or of one's own.

Other rooms use ``backbones.get_backbone`` (an encoder with its weights) and ``runtimes`` (what
computes its forward pass). ``registry`` has an entry for each encoder with a name.
"""
