"""Join the processes of a run and wait, in no collective: ``python waiting.py PORT PROCESSES NUMBER SECONDS``.

With a fifth argument the process aborts by itself, for a reason of its own.
"""

import ctypes
import os
import sys
import time

from hessabs.training import joining

if __name__ == "__main__":
    port, number, process, seconds = map(int, sys.argv[1:5])
    joining.HEARTBEAT_SECONDS = seconds
    joining.join(f"127.0.0.1:{port}", number, process)
    print("joined", flush=True)
    print("Python's own", file=sys.stderr)
    os.write(2, b"from C\n")
    if len(sys.argv) > 5:
        ctypes.CDLL(None).abort()
    time.sleep(60)
