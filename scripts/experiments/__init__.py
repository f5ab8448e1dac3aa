"""Many trainings with the shipped configs: comparing methods over seeds, searching a grid of settings.

Configs create ``comparison.Comparison`` and ``search.GridSearch``. Both plan runs (``trainings.Experiment``), have
``trainings.run_experiments`` run what is missing, and read the results from the runs' folders.
"""
