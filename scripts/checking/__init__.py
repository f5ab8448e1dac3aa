"""Every problem of a cohort before a run pays for it, and one slide looked at.

The configs call :class:`cohort.CohortChecker` (`checking`) and :func:`inspection.inspect_slide` (`inspecting`).
"""
