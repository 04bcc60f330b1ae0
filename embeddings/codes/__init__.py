"""Codes: vectors as discrete ids (QARM, arXiv 2411.11739)."""
