"""The command line: the only part of clipguide that prints or exits."""
