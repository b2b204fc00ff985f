"""Costs of a configuration, counted or measured: parameters, FLOPs, fastest micro-batch, fastest number of lanes."""
