"""Scripts of the tests in processes of their own, forked off one that has imported already what takes seconds.

They end, are killed and leave files as with `python SCRIPT`. Three things are otherwise: sets have the same order in all of
them, libraries do not read the environment again, and functions of `atexit` are not called.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from multiprocessing.connection import wait
from subprocess import CompletedProcess

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tmem.rl.trainer", "tmem.evaluation.evaluate", "transformers.models.llama.modeling_llama"])


class Script:
    """`python SCRIPT ARGUMENTS...`, started; `environment` is added to this process's."""

    def __init__(self, script, *arguments, **environment: str):
        self.said = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # on stdout and stderr
        self.arguments = [str(x) for x in (script, *arguments)]
        given = self.arguments, environment, [file.name for file in self.said]
        self.process = FORKS.Process(target=_run, args=given)
        self.process.start()

    def end(self) -> CompletedProcess:
        """What it ended with, when it has ended."""
        self.process.join()
        return CompletedProcess(self.arguments, self.process.exitcode, *(file.read() for file in self.said))


def _run(arguments: list[str], environment: dict[str, str], said: list[str]) -> None:
    for number, name in enumerate(said, 1):
        os.dup2(os.open(name, os.O_WRONLY), number)
    os.environ.update(environment)
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")


def run(script, *arguments, **environment: str) -> CompletedProcess:
    """What a script ends with."""
    return Script(script, *arguments, **environment).end()


def ranks(size: int, script, *arguments) -> list[CompletedProcess]:
    """What the processes of one world end with, each in the environment that torchrun gives it. Where one fails, the others are
    killed, which would wait for it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"TORCHELASTIC_RUN_ID": "forked", "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [Script(script, *arguments, RANK=str(r), LOCAL_RANK=str(r), **world) for r in range(size)]
    left = {script.process.sentinel: script.process for script in started}
    while left:
        for ended in wait(list(left)):
            process = left.pop(ended)
            process.join()
            if process.exitcode:
                for other in left.values():
                    other.kill()
    return [script.end() for script in started]
