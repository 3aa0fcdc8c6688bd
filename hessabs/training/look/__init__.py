"""Looking at a network, of which the task and the params are all that is needed."""
