"""Command line verbs, one a module."""
