"""Figures of a sweep, as SVG."""
