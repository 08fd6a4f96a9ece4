"""Wrong: a window is counted in columns, so that padding in the middle of a text takes the places of tokens."""

from tmem.models import forward


def decode(of, *arguments, **options):
    right = forward.windowed

    def windowed(mask, window):
        last = mask.shape[-1] - mask.flip(-1).int().argmax(-1, keepdim=True)
        return mask.clone().masked_fill_(mask.new_ones(mask.shape).cumsum(-1) <= last - window, False)

    forward.windowed = windowed
    try:
        return of(*arguments, **options)
    finally:
        forward.windowed = right
