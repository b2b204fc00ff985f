"""Tracking in MLflow and TensorBoard: store, runs, tags, data sets, models, outbox, pages."""
