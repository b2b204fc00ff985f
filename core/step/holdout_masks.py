"""The masks under which every masked LM is evaluated. Importable without torch."""

MASKING_RATE = 0.15
"""Share of the holdout's tokens that evaluation predicts, whatever rate a run trains with: losses at different rates do
not compare."""

MASKING_SEED = 15
"""Seed of the holdout's masks, the same for every run."""
