"""Class probabilities of a classifier for every row."""

import torch
from torch import Tensor

from core.models.classifier import Classifier
from core.settings.precision import Precision
from core.step.objectives import predicted_hidden
from data_pipeline.tokens.batches import BatchSource


@torch.no_grad()
def class_probabilities(
    classifier: Classifier, source: BatchSource, *, rows_at_once: int, precision: Precision
) -> Tensor:
    """(n, C) probability of each class for every row of `source`, in stored order, on the CPU.

    Args:
        rows_at_once: Rows per forward pass.
    """
    device = next(classifier.parameters()).device
    shard = source.shard(position=0, batch_size=source.num_rows, rank=0, num_workers=1)
    was_training = classifier.training
    classifier.eval()
    found = []
    for start in range(0, len(shard), rows_at_once):
        batch = source.batch(shard, start, min(start + rows_at_once, len(shard))).to(device)
        with precision.autocast():
            logits_BC = classifier.logits(predicted_hidden(classifier.hidden_states, batch))
        found.append(logits_BC.float().softmax(dim=-1).cpu())
    classifier.train(was_training)
    return torch.cat(found)
