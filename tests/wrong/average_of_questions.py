"""Wrong: the task average is the mean of all questions, so that a type with many questions counts more."""

from tmem.tasks import longmemeval


def summary(rows):
    return {k: {**v, "task_average": v["overall"]} for k, v in longmemeval.summary(rows).items()}
