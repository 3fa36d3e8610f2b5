"""The command line: one command a file, and what they share in ``output`` and ``exit_codes``."""
