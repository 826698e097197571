"""Offline tables: how good every method's maps are, on scenes in which the truth is known.

Needs what `whybox.scenes` needs (the extra `train`); no worker imports it.
"""
