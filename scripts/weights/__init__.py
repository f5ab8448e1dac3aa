"""What travels with trained weights, and loading them.

Other rooms use ``checkpoints`` (``load_weights``, ``save_checkpoint``, ``HeadwiseNetwork``), ``paths`` (which file has
the weights of which head), ``record`` (what weights were trained with and on, and whether they are whole) and
``pretrained`` (weights from which a training starts).
"""
