"""A token drawn by inverse CDF: against the plain cumulative sum, at the ends of the noise, and in any company."""

import pytest
import torch

from tmem.agent.sampling import BLOCK, _drawn

LAST = 1 - 2.0**-53  # the largest number below 1


@pytest.mark.parametrize("vocabulary", [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 50257])
def test_it_is_the_plain_inverse(vocabulary):
    for seed in range(10):
        torch.manual_seed(seed)
        logp = (3 * torch.randn(16, vocabulary)).log_softmax(-1)
        if seed % 2 and vocabulary > 1:
            logp[:, vocabulary // 2 :] = float("-inf")  # outside of a nucleus
        noise = torch.rand(16, dtype=torch.float64)
        noise[:2] = torch.tensor([0.0, LAST], dtype=torch.float64)
        token, cdf = _drawn(logp, noise), logp.double().exp().cumsum(-1)
        assert (logp.gather(-1, token[:, None]) > float("-inf")).all(), "a token without probability was drawn"
        above = cdf.gather(-1, token[:, None])[:, 0]
        below = above - logp.double().exp().gather(-1, token[:, None])[:, 0]
        aim = noise * cdf[:, -1]
        assert (below - 1e-6 <= aim).all() and (aim <= above + 1e-6).all()
        for row in (0, 1, 7):
            assert _drawn(logp[row : row + 1].clone(), noise[row : row + 1]) == token[row]
