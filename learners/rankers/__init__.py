"""Rankers, one a module."""
