"""Drawings with names, from ordinary packages: fetch, render, hold out, compose, caption.

`python -m training.data build` makes the folder that `compose.TrainingSet` reads.
"""
