"""Measures of how good a heat map is."""
