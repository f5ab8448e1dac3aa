"""Scores, their intervals, reports, and how well maps find annotated regions."""
