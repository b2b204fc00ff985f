"""Records of a sweep on disk: outcomes, trials, results folder, lock, copy at a URI."""
