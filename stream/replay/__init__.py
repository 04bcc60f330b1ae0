"""Record logs through the pipeline, and the report of it."""
