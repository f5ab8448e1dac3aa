"""From patches to feature files.

Other rooms use ``encoding.Encoder`` (features of a bag), ``extraction.Extractor`` (banks of a datalist), ``bank`` and
``bank_writing`` (read, locate and write them), ``augmentation`` (the views of a slide), and ``imported`` (features of
other tools, in the place of an encoder). ``importing`` makes banks of such features, whose files ``layouts`` reads.
"""
