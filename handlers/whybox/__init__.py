"""What runs inside a TorchServe worker: detectors, explanation methods and the handler.

Letters used throughout the package: B images of a batch, N chosen candidates, T targets, K classes,
C channels, H x W pixels or cells of a whole map, h x w cells of a window of it.
"""
