"""Baselines that every ranker has to beat, one a module."""
