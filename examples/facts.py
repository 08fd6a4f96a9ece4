"""Teach sixteen facts, then ask for them in other words, and for what was never told: python examples/facts.py --help"""

import json
import time

import click

from tmem import Memory

FACTS = [
    ("What is the name of Petra's cat?", "Minka", "How is Petra's cat called?"),
    ("In which city does Hugo live?", "Ghent", "Where does Hugo live?"),
    ("What is Nadia's job?", "glazier", "What does Nadia do for a living?"),
    ("Which instrument does Emil play?", "oboe", "What instrument does Emil make music on?"),
    ("What is Carla allergic to?", "walnuts", "Carla has an allergy to what?"),
    ("What is the colour of Jonas's bicycle?", "yellow", "Which colour does Jonas's bicycle have?"),
    ("When did Ruth move house?", "3 March", "On what date did Ruth move house?"),
    ("What is the name of Hugo's brother?", "Anton", "How is the brother of Hugo called?"),
    ("What does Petra like to eat most?", "risotto", "What is Petra's favourite thing to eat?"),
    ("Where did Nadia go on holiday?", "Malta", "What was the place of Nadia's holiday?"),
    ("What does Emil study?", "botany", "Which subject does Emil study?"),
    ("Which sport does Carla play?", "badminton", "What sport does Carla do?"),
    ("What does Jonas collect?", "teapots", "Which things does Jonas collect?"),
    ("Which language is Ruth learning?", "Finnish", "What language does Ruth learn?"),
    ("What is the name of Nadia's boat?", "Albatros", "How is Nadia's boat called?"),
    ("Who is Carla's best friend?", "Zelda", "What is the name of Carla's best friend?"),
]

NEVER_TOLD = [
    "How is Ruth's cat called?",
    "Where does Emil live?",
    "What does Jonas do for a living?",
    "What instrument does Petra make music on?",
    "Hugo has an allergy to what?",
    "Which colour does Nadia's bicycle have?",
    "How is the brother of Emil called?",
    "What was the place of Carla's holiday?",
    "What sport does Petra do?",
    "What language does Hugo learn?",
]


@click.command()
@click.argument("preset", default="default")
@click.argument("file", type=click.File(), required=False)
@click.option("--each", type=click.IntRange(1), default=len(FACTS), show_default=True, help="So many facts are told at once.")
def main(preset, file, each):
    """Teach sixteen facts, then ask for them in other words, and for what was never told.

    FILE: other facts, such as examples/facts_lena.json.
    """
    facts, never_told = FACTS, NEVER_TOLD
    if file:
        record = json.load(file)
        facts, never_told = record["told"], record["never_told"]
    memory = Memory.from_pretrained(preset=preset)
    start = time.process_time()
    for at in range(0, len(facts), each):
        told = [(question, answer) for question, answer, _ in facts[at : at + each]]
        learned = memory.learn(told)
        did = f"loss {learned.loss_before:.2f} -> {learned.loss_after:.3f}" if learned.kept else f"undone, {learned.reason}"
        print(f"learned {len(told)} facts: {did}")
    taken = time.process_time() - start
    right = 0
    for _, answer, paraphrase in facts:
        said = memory.ask(paraphrase)
        right += said == answer
        print(f"{'+' if said == answer else '-'} {paraphrase:42} {said}")
    unknown = 0
    print("never told:")
    for question in never_told:
        said = memory.ask(question)
        unknown += said == "unknown"
        print(f"{'+' if said == 'unknown' else '-'} {question:42} {said}")
    told, not_told = f"{right} of {len(facts)} recalled", f'{unknown} of {len(never_told)} that were never told "unknown"'
    print(f"{told}, {not_told}; learned in {taken:.0f} s of CPU, asked in {time.process_time() - start - taken:.0f} s")


if __name__ == "__main__":
    main()
