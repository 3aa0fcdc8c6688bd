"""Four virtual CPU devices for every test of a session: the number is fixed once JAX has started."""

import os

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
