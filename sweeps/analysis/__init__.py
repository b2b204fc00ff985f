"""Analysis of recorded numbers: ranking, noise between seeds, loss surface, expected gain, fairness, next steps."""
