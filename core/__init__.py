"""One training run in plain torch: models, loss, step, loop. Knows neither Ray nor MLflow."""
