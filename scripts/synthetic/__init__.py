"""The synthetic slides of the demonstration, and how they are distinguished from scanned ones.

Other rooms use ``cohort.ensure_cohort``, which makes slides where there are none, and ``marker.count_slides`` for the
record of trained weights.
"""
