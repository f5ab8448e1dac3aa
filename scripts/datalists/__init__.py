"""Which slides a workflow uses, whose they are, with which labels, and in which partition.

``datalist`` reads datalists, ``folds`` those of cross-validation, ``cohort`` chooses one, ``slide_files`` finds and
names slides, ``labels`` turns a label into a vector, ``label_files`` takes what MONAI Label hands over, ``failures``
records slides that fail, ``patients`` and ``classes`` say whose the slides of a cohort are and how its classes are
spread, ``units`` which slides are one bag. ``problems`` describes what is wrong: a run raises the first problem,
``checking`` lists all.
"""
