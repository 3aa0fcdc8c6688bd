"""Looking at a network: evaluation, curvature, attacks, predictions, reports; of a task and its params alone."""
