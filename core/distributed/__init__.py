"""Workers of one run and their agreements: attempts, one micro-batch for all, gradients summed."""
