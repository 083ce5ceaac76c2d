"""Starts ranks within milliseconds: imports torch and the trainer once, then forks for each.

Reads one JSON object a line, {"environment": {...}, "log": file, "maximumFileBytes": n or null, "prepare": a module of
tests whose `prepare` the rank calls first, or null}, and answers with the process id; {"wait": pid} is answered with
its exit code, negative for a signal.
"""

import importlib
import json
import os
import resource
import signal
import sys
from pathlib import Path

import modelchain_trainer.training  # noqa: F401 - imported, not run: no thread of torch exists before a fork
from modelchain_trainer import worker

sys.path.insert(0, str(Path(__file__).parents[2]))


def _become_rank(request: dict[str, object]) -> None:
    environment = request["environment"]
    assert isinstance(environment, dict)
    os.environ.clear()
    os.environ.update(environment)
    log = os.open(str(request["log"]), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(0)
    if request.get("maximumFileBytes") is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limit = int(str(request["maximumFileBytes"]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if request.get("prepare") is not None:
        importlib.import_module(str(request["prepare"])).prepare()
    os._exit(worker.main())


print("ready", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if "wait" in request:
        _, status = os.waitpid(request["wait"], 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        _become_rank(request)
    print(pid, flush=True)
