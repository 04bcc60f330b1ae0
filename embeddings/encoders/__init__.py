"""Encoders of item content, one modality a module."""
