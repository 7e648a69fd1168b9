"""Measures every bar and prints them in one table; see `python -m training.evaluate --help`."""
