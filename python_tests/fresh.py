"""Fresh processes at a low price: forked from one that has loaded torch and nothing of ours."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lightkernels

ROOT = Path(lightkernels.__file__).parent.parent

# Answers one line of JSON with another: what the code printed, and its exit status.
_PARENT = """
import json, os, signal, sys, tempfile, traceback
import torch.utils.flop_counter  # has triton imported, where there is one
for line in sys.stdin:
    asked = json.loads(line)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            status = 1
            signal.alarm(120)
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.environ.clear()
                os.environ.update(asked["environment"])
                os.chdir(asked["folder"])
                sys.path.insert(0, asked["folder"])
                exec(asked["code"], {"__name__": "__main__"})
                status = 0
            except SystemExit as end:
                status = int(end.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    print(json.dumps([status, *texts]), flush=True)
"""


@functools.cache
def _parent() -> subprocess.Popen[str]:
    environment = _clean() | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", _PARENT], env=environment, **pipes)
    atexit.register(process.communicate)  # which ends it
    return process


def _clean() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("LIGHTKERNELS_", "PYTHONPATH"))}


def run(code: str, folder: Path = ROOT, **variables: str) -> Any:
    """The JSON that ``code`` prints in a process that finds the package in ``folder``, with these variables alone."""
    environment = _clean() | {"OMP_NUM_THREADS": "1"} | variables
    if hasattr(os, "fork"):
        parent = _parent()
        assert parent.stdin is not None and parent.stdout is not None
        request = {"code": code, "folder": str(folder), "environment": environment}
        print(json.dumps(request), file=parent.stdin, flush=True)
        status, out, err = json.loads(parent.stdout.readline())
    else:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            cwd=folder,
            env=environment | {"PYTHONPATH": str(folder)},
            check=False,
        )
        status, out, err = done.returncode, done.stdout, done.stderr
    assert status == 0, err
    return json.loads(out)


_RANKS = """
import json
import multiprocessing
import sys

import torch._dynamo  # which optimisers would load, in every process anew

context = multiprocessing.get_context("fork")
ranks = [context.Process(target=rank, args=(i,), daemon=True) for i in range({count})]
for one in ranks:
    one.start()
for one in ranks:
    one.join(100)
print(json.dumps([one.exitcode for one in ranks]))
sys.exit(any(one.exitcode != 0 for one in ranks))
"""


def run_ranks(code: str, count: int) -> None:
    """Calls ``rank(i)``, which ``code`` defines, in ``count`` processes at once, all of which must end well."""
    if not hasattr(os, "fork"):
        pytest.skip("processes are forked")
    network = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform.startswith("linux") else {}
    assert run(code + _RANKS.format(count=count), **network) == [0] * count
