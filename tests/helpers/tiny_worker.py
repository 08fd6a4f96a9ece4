"""A worker of a training run on the tiny model of tiny_run: `python tiny_worker.py [--kill N] [options of tmem worker]`.

With --kill it kills itself when its N-th request comes.
"""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import tiny_run
import torch

from tmem import cli
from tmem.rl.worker import Worker


@contextmanager
def worker(folder, *words):
    """(process, address) of a worker of its own while the block runs."""
    command = [sys.executable, __file__, str(folder / "worker"), "--port", "0", *map(str, words)]
    with (folder / "said.txt").open("a") as log:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=log, text=True, cwd=Path(__file__).parent)
    try:
        said = process.stderr.readline()
        assert "--workers http" in said, said + process.stderr.read()
        yield process, said.split("--workers ")[1].strip()
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    out, *words = sys.argv[1:]
    torch.set_num_threads(1)
    tiny_run.prepare(Path(out))
    if "--kill" in words:
        at = words.index("--kill")
        left, generate = [int(words[at + 1])], Worker.generate
        del words[at : at + 2]

        def dies(self, content):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return generate(self, content)

        Worker.generate = dies
    cli.main(["worker", *words])
