"""Scores, their intervals, reports, and how well maps find annotated regions.

Other rooms use :mod:`metrics` (scores of arrays, and metrics for MONAI's engines), :mod:`bootstrap` (intervals and
paired differences), :mod:`localisation` (regions, and maps against them), :mod:`reports` (what is written) and
:mod:`external` (slides from elsewhere beside the internal test).
"""
