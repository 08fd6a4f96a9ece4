"""Wrong: (a) always stands for "No information available", whatever the order that was drawn."""

from dataclasses import replace

from tmem.tasks import metrics


def chosen(prediction, question):
    no_information = sorted(question.choices, key=lambda choice: choice != metrics.ABSTENTIONS[0])
    return metrics.chosen(prediction, replace(question, choices=tuple(no_information)))
