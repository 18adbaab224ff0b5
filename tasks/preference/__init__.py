"""Preference scores of photographs that need nothing but the picture and its prompt."""
