"""Downstream tasks of a sweep: labelled rows read once, and linear probes that judge frozen features of each trial."""
