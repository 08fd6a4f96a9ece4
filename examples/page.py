"""A page of real text goes in, the text goes, questions come: python examples/page.py [FILE QUESTION ...]

Without a FILE it is the first page of Darwin's *Voyage of the Beagle* (1839), with twelve questions: the page answers nine. The
memory knows the questions while it reads. With --unknown it does not, and writes down what it thinks will be asked.
"""

import sys
import time
from pathlib import Path

from tmem import Memory

BEAGLE = Path(__file__).with_name("beagle.txt")
TOLD = [
    ("Who commanded the Beagle?", "Captain Fitz Roy"),
    ("Where did the ship sail from?", "Devonport"),
    ("When did the ship leave?", "27th of December, 1831"),
    ("Who led the earlier survey?", "Captain King"),
    ("What kind of ship was the Beagle?", "a ten-gun brig"),
    ("What drove the ship back?", "heavy southwestern gales"),
    ("Why could they not land at Teneriffe?", "fears of our bringing the cholera"),
    ("Where did they anchor on the 16th of January?", "Porto Praya"),
    ("What is the chief island of the Cape de Verd archipelago?", "St. Jago"),
]
NEVER_TOLD = ["Who paid for the expedition?", "What was the name of Darwin's wife?", "How many sailors fell ill?"]

if __name__ == "__main__":
    unknown = "--unknown" in sys.argv
    file, *questions = [a for a in sys.argv[1:] if a != "--unknown"] or [BEAGLE]
    asked = [(q, "") for q in questions] or TOLD + [(q, "unknown") for q in NEVER_TOLD]
    memory = Memory.from_pretrained()
    start = time.perf_counter()
    known = [] if unknown else [question for question, _ in asked]
    memory.observe(Path(file).read_text(encoding="utf-8"), known=known)
    memory.write(known=known)
    print(f"{len(memory.pairs)} pairs in {time.perf_counter() - start:.0f} s, such as {memory.pairs[0]}; the text is gone")
    for question, answer in asked:
        print(f"{question:58} {memory.ask(question):26} {answer}")
