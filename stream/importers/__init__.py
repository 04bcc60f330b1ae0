"""Public data sets to record logs, one a module."""
