"""Parts of transformers: attention, norms, feed-forwards, mixture of experts, product-key memory, low-rank layers."""
