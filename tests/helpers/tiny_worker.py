"""A worker of a training run on the tiny model of tiny_run: `python tiny_worker.py [--kill N] [options of tmem worker]`.

With --kill it kills itself when its N-th request comes.
"""

import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import forked
import tiny_run
import torch

from tmem import cli
from tmem.rl.worker import Worker


@contextmanager
def worker(folder, *words):
    """(script, address) of a worker in a process of its own while the block runs."""
    script = forked.Script(__file__, folder / "worker", "--port", 0, *words)
    try:
        while "\n" not in (said := Path(script.said[1].name).read_text()):
            assert script.process.is_alive(), said
            time.sleep(0.02)
        assert "--workers http" in said, said
        yield script, said.split("--workers ")[1].split()[0]
    finally:
        script.process.kill()
        script.end()


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
