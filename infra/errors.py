"""The errors that end a command with a code of their own. Knows no command and prints nothing."""

from __future__ import annotations


class InputError(Exception):
    """Wrong configuration or input: one clear line (what, where, expected, got, what to do).

    The command line prints it without a traceback and exits with code 2.
    """


class FaultError(Exception):
    """Something broke that its user did not cause: one clear line, exit code 1."""
