"""Training and evaluation of the demo detectors on rendered scenes: `python -m whybox.training --help`."""
