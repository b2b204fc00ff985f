"""Whole models: encoders, decoder, classifier, LoRA on any of them, models of equal size, generation, text vectors."""
