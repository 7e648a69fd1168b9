"""Pipelines: one readable file for each, composed of the parts of clipguide."""
