"""MuSTMIL and what it is compared with. Networks know tensors alone: no slides, no files, no TensorBoard.

Other rooms use :mod:`methods` (``get_network``, ``get_loss``, the names of heads and maps), :class:`BagNetwork`,
``head_losses``, and the record that weights carry (:mod:`state_record`).
"""
