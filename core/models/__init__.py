"""Whole models: encoders, decoder, classifiers, LoRA, models of equal size, generation, text features."""
