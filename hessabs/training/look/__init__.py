"""Looking at a network, of its task and params alone: evaluation, curvature, attacks, predictions, reports."""
