"""Calibration: from a bundle to a bundle of lower precision. Empty until its first pass lands."""
