"""The frontier of constant batches, tuned for every optimiser, and where the untuned rules lie beside it."""
