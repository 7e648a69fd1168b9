"""Measure every figure with a target, and print them in one table: see `python -m training.evaluate
--help`."""
