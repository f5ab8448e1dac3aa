"""What every room stands on: errors, files, ranks, settings, provenance; it knows nothing of slides or networks."""
