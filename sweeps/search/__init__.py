"""The search: sampler, first points, budget, ledger of all trials, and the searcher that Tune asks."""
