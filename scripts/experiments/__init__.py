"""Many trainings with the shipped configs: methods over seeds, folds of the patients, a grid of settings.

Configs create ``comparison.Comparison``, ``cross_validation.CrossValidation`` and ``search.GridSearch``. Each plans
runs (``trainings.Experiment``), has ``trainings.run_experiments`` run what is missing, and reads the results from the
runs' folders.
"""
