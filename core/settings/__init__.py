"""Settings of one training run: model, objective, training, learning-rate schedule, cooldown branch, number format."""
