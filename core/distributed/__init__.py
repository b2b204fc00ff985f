"""Workers of one run: collective attempts, one micro-batch size for all, gradient exchange."""
