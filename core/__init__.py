"""One training run in plain torch: models, loss, step, loop. Depends on neither Ray nor MLflow."""
