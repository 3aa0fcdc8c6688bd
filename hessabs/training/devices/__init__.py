"""Training on many devices and in many processes: the mesh, the step's collectives, what processes share."""
