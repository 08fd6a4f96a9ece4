"""What metrics and tasks are called, and the colour of each metric."""

# What a metric is called and its colour (Okabe and Ito's palette, told apart by colour-blind readers), in this order.
METRICS = {
    "f1": ("F1", "#0072B2"),
    "em": ("EM", "#56B4E9"),
    "official_f1": ("official F1", "#E69F00"),
    "squad_f1": ("SQuAD F1", "#009E73"),
    "squad_em": ("SQuAD EM", "#CC79A7"),
    "mem1_f1": ("MEM1's F1", "#882255"),
    "contains": ("contains answer", "#332288"),
    "judge": ("judge", "#000000"),
    "rubrics": ("rubrics passed", "#F0E442"),
    "intrusion": ("intrusions (fewer is better)", "#D55E00"),
}

# What a task is called.
TASKS = {
    "stream": "stream (generated)",
    "locomo": "LoCoMo",
    "longmemeval": "LongMemEval",
    "search": "multi-objective search",
    "clbench": "CL-bench",
    "squad": "SQuAD passages",
    "passages": "passages of own files",
}

# Kinds and categories of questions that the text does not answer, so that to abstain is right.
_UNTOLD = ("unknown", "adversarial", "5", "abstention")


def answerable(kind: str, category: str) -> bool:
    """Whether the text answers questions of a task's kind and category."""
    return kind not in _UNTOLD and category not in _UNTOLD
