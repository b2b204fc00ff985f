"""Costs of a configuration, counted or measured: parameters, FLOPs, fastest micro-batch size, best number of lanes."""
