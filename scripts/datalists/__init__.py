"""Which slides a workflow uses, whose they are, with which labels, and in which partition."""
