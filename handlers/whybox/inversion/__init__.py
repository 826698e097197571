"""Layout inversion: find a picture that a detector recognises as a given layout.

Source: Cao and Johnson, "Inverting and Understanding Object Detectors", 2021: alternate between
pseudo-targets for the network's raw outputs (`targets`) and a gradient step of the picture towards them
(`losses`, `inverter`).
"""
