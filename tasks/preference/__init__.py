"""Preference scores of photographs, computed from the image and its prompt alone."""
