"""Train in processes that may be killed; a test talks to this one in lines of JSON.

A request is ``{"workdir", "settings", "kill", "twice"}``. Each is done by a fork of this process, which has
imported everything and has never touched a device. ``kill`` is null or ``[point, count, seconds]``: the process
kills itself (SIGKILL) so many seconds after a point of the code is reached for the count-th time. The answer is
``{"status", "bits"}``: the exit status as of ``os.waitstatus_to_exitcode``, and the digest of the params.
``twice`` trains once more from the beginning, in the folder ``whole`` beside: ``"whole"`` of the answer is that
digest. Nothing is attacked or drawn, and what is compiled is not optimised.
"""

import json
import os
import pathlib
import signal
import sys
import threading
import traceback

import orbax.checkpoint  # noqa: F401

from hessabs.curvature import power
from hessabs.training import (
    checkpoints,
    curves,  # matplotlib is imported once, before the forks
    files,
    loop,
    store,
)
from hessabs.training.durability import Durability
from tests.training.runs import again, bits, make_run
from tests.training.saving.ending import before

DURABILITY = Durability(resume=True, checkpoint_every="24samples", keep_checkpoints=2)


def arm(run, point, count, seconds):
    """Let the process end at a point of the code; returns the run to train."""
    seen = 0

    def die():
        if seconds:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    def reached():
        nonlocal seen
        seen += 1
        if seen == count:
            die()

    def at(owner, name):
        function = getattr(owner, name)
        setattr(owner, name, lambda *args, **kwargs: (reached(), function(*args, **kwargs))[1])

    if point == "micro_batch":
        return before(run, count, die)
    if point == "update":  # between two of them, or between the last micro-batch of one and its end
        finish = run.functions.finish

        def finish_later(*arguments):
            reached()
            return finish(*arguments)

        finish_later._cache_size = finish._cache_size
        return run._replace(functions=run.functions._replace(finish=finish_later))
    if point == "write":  # on orbax's thread: all files are written and the checkpoint is not there yet
        at(checkpoints, "write_manifest")
    elif point == "params":
        at(store, "save_network")
    elif point == "summary":
        write = files.write_json

        def write_and_die(path, record):
            if path.name == files.SUMMARY:
                reached()
            write(path, record)

        files.write_json = write_and_die
    elif point == "measure":  # before a product of the power iteration
        at(power, "_jitted_step")
    elif point == "growth":
        decide, sizes = loop.Decision.of, []

        def decide_and_die(*arguments):
            decision = decide(*arguments)
            if sizes and decision.batch_size > sizes[-1]:
                reached()
            sizes.append(decision.batch_size)
            return decision

        loop.Decision.of = decide_and_die
    elif point == "line":
        append = files.append_line

        def append_half(path, record):
            with path.open("a") as file:
                file.write('{"epoch": ')
            reached()
            append(path, record)  # not reached where the count is 1

        files.append_line = append_half
    else:
        raise ValueError(point)
    return run


def work(request):
    """Do a request; returns digests of params."""
    settings = {name: tuple(v) if isinstance(v, list) else v for name, v in request["settings"].items()}
    workdir = pathlib.Path(request["workdir"])
    curves.draw_curves = lambda path, runs: path.touch()
    run = make_run(**settings)._replace(final={})
    one = again(run)
    if request["kill"]:
        one = arm(one, *request["kill"])
    digests = {"bits": bits(loop.train(one, workdir, DURABILITY).params)}
    if request["twice"]:
        digests["whole"] = bits(loop.train(run, workdir.with_name("whole"), DURABILITY).params)
    return digests


def main():
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(write, json.dumps(work(json.loads(line))).encode())
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        os.close(write)
        _, status = os.waitpid(child, 0)
        with os.fdopen(read) as file:
            digests = json.loads(file.read() or '{"bits": ""}')
        answer = {"status": os.waitstatus_to_exitcode(status), **digests}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
