"""Fine-tuning of pretrained encoders to classifiers: request, training, metrics, report, MLflow."""
