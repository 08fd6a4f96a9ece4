"""The `tmem` command: a file for each verb, imported when the verb is called for."""

import click

from ..machine import rows_apart, sleep_soon
from ..models.quantised import hush
from .group import Verbs

VERBS = {
    "train": "tmem.cli.train:train",
    "worker": "tmem.cli.worker:worker",
    "eval": "tmem.cli.evaluate:evaluate",
    "report": "tmem.cli.report:report",
    "serve": "tmem.cli.serve:serve",
    "mcp": "tmem.cli.mcp:mcp",
    "study": "tmem.cli.study:study",
    "budget": "tmem.cli.budget:budget",
    "bench": "tmem.cli.bench:bench",
    "info": "tmem.cli.info:info",
}


@click.group(
    cls=Verbs,
    verbs=VERBS,
    formerly={"plan": "budget"},
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="tmem", message="tmem %(version)s")
def main() -> None:
    """An LLM agent with memory in its weights.

    The model reads a stream of text and writes down question/answer pairs. A few gradient steps learn the pairs into
    fast weights, which belong to this episode alone. Then the text goes, and answers come from the weights.

    \b
    Examples:
      tmem train --preset stream                    warm start and RL: 20 minutes
      tmem report runs/train                        one page: what was learned
      tmem eval --task stream --methods none,tmem   compare methods on a task
      tmem eval --task locomo --data locomo10.json --limit 20
      tmem serve --store memories                   an OpenAI endpoint
      tmem mcp --store memories                     a memory as an agent's tools
      tmem bench lora                               time the ops against others
      tmem info                                     versions, devices and kernels
      tmem info --model MODEL                       how tmem understood a model
      tmem VERB --help                              the options of a verb

    A user's error is one sentence and exit code 2. TMEM_DEBUG=1 shows where it arose. TMEM_CACHE names the folder of
    converted models [default: ~/.cache/tmem].
    """
    sleep_soon()
    rows_apart()
    hush()
