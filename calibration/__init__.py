"""Calibration: from a bundle to a bundle, smaller or of fewer steps, by what receptions show.

`jscc.calibration.calibrate` lowers the precision within a budget, `jscc.calibration.tune` fits
steps and noise levels to the channel. Nothing here needs torch.
"""
