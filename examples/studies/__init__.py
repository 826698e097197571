"""The studies of Cao and Johnson, "Inverting and Understanding Object Detectors", 2021, over the service."""
