"""Whole models: encoders, decoder, classifiers, LoRA, a user's class, models of equal size, generation, features."""
