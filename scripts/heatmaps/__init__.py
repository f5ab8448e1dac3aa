"""Maps over a slide's patches, and every form in which they leave.

Other rooms use :class:`bag_maps.BagMaps` (all maps of the slides of a bag), :class:`attention_maps.PatchMap` (one of
them), :class:`writer.HeatmapWriter` (files for each predicted slide) and :func:`figures.panel` (slides side by side).
Pictures as arrays, without files, come from :func:`images.overlay`, :func:`legend.legend`,
:func:`legend.heatmap_with_legend` and :func:`top_patches.gallery`.
"""
