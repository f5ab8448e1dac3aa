"""Many trainings: comparing methods, searching settings."""
