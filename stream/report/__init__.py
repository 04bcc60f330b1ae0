"""The report page: an evaluation as one HTML file with plots. Computes no score."""
