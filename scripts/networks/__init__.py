"""MuSTMIL and what it is compared with. Networks know tensors alone: no slides, no files, no TensorBoard."""
