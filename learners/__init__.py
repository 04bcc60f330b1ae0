"""What learns from clicks: learners, id tables, optimizers, metrics. Tensors in, numbers out."""
