"""Parts of transformers: attention, norms, feed-forwards, mixtures of experts, product-key memory, low-rank maps."""
