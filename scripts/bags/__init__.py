"""A slide's tissue, its grid of patches linked across magnifications, and the bag that they make.

Other rooms use ``bag.BagBuilder`` and ``bag.Bag``, ``grid`` (rows and their weights), ``tissue.TissueMask``,
``mask_files`` (label images) and ``linked_patches`` (a picture of rows).
"""
