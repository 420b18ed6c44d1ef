"""The command line: ``safegene ...``, one module for each group of commands, and the demo."""
