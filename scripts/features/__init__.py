"""From patches to feature files.

Other rooms use ``encoding.Encoder`` (features of a bag), ``extraction.Extractor`` (banks of a datalist), ``bank``
(read, write and locate them) and ``augmentation`` (the views of a slide).
"""
