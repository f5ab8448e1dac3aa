"""Every problem of a cohort before it costs; one slide looked at."""
