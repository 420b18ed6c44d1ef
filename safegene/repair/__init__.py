"""Repair: how a target gets its safety back, from calibration shots to fitted coefficients, and the rival methods."""
