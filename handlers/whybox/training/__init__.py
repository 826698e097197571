"""Training of the demo detectors on rendered scenes, and their figures. See `python -m whybox.training --help`."""
