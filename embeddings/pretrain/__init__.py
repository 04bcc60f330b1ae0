"""Learning from recorded behaviour what items people find alike."""
