"""Train in processes that may be killed; a test talks to this one in lines of JSON.

A request is ``{"workdir", "config", "kill"}``. Each is done by a fork of this process, which has imported
everything and has never touched a device. ``kill`` is null or ``[point, count, seconds]``: the process kills
itself (SIGKILL) so many seconds after a point of the code is reached for the count-th time. The answer is
``{"status", "bits"}``: the exit status as of ``os.waitstatus_to_exitcode``, and the digest of the params.
"""

import json
import os
import pathlib
import signal
import sys
import threading
import traceback

import matplotlib.figure  # noqa: F401  # imported once, before the forks
import orbax.checkpoint  # noqa: F401

from hessabs.curvature import power
from hessabs.training import loop, metrics, set_up, train
from hessabs.training.saving import checkpoint, store
from hessabs.training.saving.durability import Durability
from tests.training.saving.runs import CONFIG, bits, small_digits

DURABILITY = Durability(resume=True, checkpoint_every="24samples", keep_checkpoints=2)


def arm(point, count, seconds):
    """Let the process end at a point of the code."""
    seen = 0

    def reached():
        nonlocal seen
        seen += 1
        if seen == count:
            if seconds:
                threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    def before(owner, name):
        function = getattr(owner, name)
        setattr(owner, name, lambda *args, **kwargs: (reached(), function(*args, **kwargs))[1])

    if point == "micro_batch":
        before(loop, "_train_on")
    elif point == "write":  # on orbax's thread: all files are written and the checkpoint is not there yet
        before(store, "write_manifest")
    elif point == "params":
        before(checkpoint, "save_params")
    elif point == "summary":
        before(metrics, "write_json")
    elif point == "measure":  # before a product of the power iteration
        before(power, "_jitted_step")
    elif point == "growth":
        decide, sizes = loop.decide, []

        def decide_and_die(*arguments):
            decision = decide(*arguments)
            if sizes and decision.batch_size > sizes[-1]:
                reached()
            sizes.append(decision.batch_size)
            return decision

        loop.decide = decide_and_die
    elif point == "line":
        append = metrics.append_line

        def append_half(path, record):
            with path.open("a") as file:
                file.write('{"epoch": ')
            reached()
            append(path, record)  # not reached where the count is 1

        metrics.append_line = append_half
    else:
        raise ValueError(point)


def work(request, dataset):
    """Do a request; returns the digest of the params."""
    if request["kill"]:
        arm(*request["kill"])
    config = CONFIG._replace(**request["config"])
    return bits(train(set_up(config, dataset), pathlib.Path(request["workdir"]), DURABILITY).params)


def main():
    dataset = small_digits()
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(write, work(json.loads(line), dataset).encode())
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        os.close(write)
        _, status = os.waitpid(child, 0)
        with os.fdopen(read) as file:
            answer = {"status": os.waitstatus_to_exitcode(status), "bits": file.read()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
