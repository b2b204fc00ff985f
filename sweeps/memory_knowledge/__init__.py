"""Memory and speed learnt from trials, kept between sweeps, and the border between fitting and not."""
