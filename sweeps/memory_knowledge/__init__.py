"""Memory and speed learnt from trials, kept between sweeps, and the frontier between fitting and not."""
