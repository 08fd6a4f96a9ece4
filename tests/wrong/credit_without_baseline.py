"""Wrong: credits without their group's mean, so that whatever helps at all is pushed up, the worst of a group too."""


def relative(credits, places, **_):
    return [list(row) for row in credits]
