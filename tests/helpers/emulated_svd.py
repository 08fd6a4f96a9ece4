"""Run by test_cuda_svd.py in a process of its own: the CUDA kernels of batched_rsvd, compiled for the CPU (tests/emulation),
take the place of the C++ ones, and the promises of svd_parts.py are held against them; then all of it together. Prints one
JSON object: check -> what went wrong, "" if nothing; of `ways`, what it found. Arguments: the library, and which checks
(none = all)."""

import json
import sys

import spectra
import svd_parts
import torch

from tmem import ops


def whole(parts) -> None:
    """batched_rsvd on these kernels, against fp64."""
    for m, n in ((90, 70), (70, 90)):
        a = spectra.weight_like(m, n).float()
        found = ops.batched_rsvd([a], 16, iters=2)[0]
        best = torch.linalg.svdvals(a.double())[:16]
        kept = (a.double() @ found.V.double()).square().sum() / best.square().sum()
        assert kept > 0.99 and found.info == 0, f"energy {kept:.5f}, info {found.info}"
        svd_parts.close("V", found.V.mT @ found.V, torch.eye(16), 1e-5)
        svd_parts.close("U", found.U.mT @ found.U, torch.eye(16), 1e-5)


def ways(parts) -> str:
    """The Gram steps whose bits are not those of two products, as columns of W x columns of x, however W lies."""
    once = []
    for n, columns in ((70, 5), (530, 16), (530, 33)):
        w, scale = svd_parts.normal(1, 100, n, seed=n).bfloat16(), torch.tensor([0.75])
        x = svd_parts.normal(1, n, columns, seed=1)
        two = parts.svd_product([w.mT], parts.svd_product([w], x, scale), scale)
        other = {not torch.equal(parts.svd_gram([lies], x, scale), two) for lies in (w, w.mT.contiguous().mT)}
        assert len(other) == 1, "another way where the matrix lies otherwise"
        once += [f"{n}x{columns}"] if other.pop() else []
    return " ".join(once)


def main():
    torch.ops.load_library(sys.argv[1])
    svd_parts.SHAPES = [(150, 33, 16), (131, 7, 5), (1, 1, 1), (3, 600, 17), (5, 0, 3), (70, 40, 33)]
    svd_parts.GRAMS = [(260, 20, 5), (34, 530, 16), (3, 2, 33), (1, 1, 1), (0, 4, 2)]
    svd_parts.SCANS = [(2, 77, 31), (2, 70, 136), (1, 1, 1), (3, 1, 3000), (3, 3000, 1)]
    svd_parts.ALL_DTYPES = "all" in sys.argv
    svd_parts.PRODUCT |= {torch.bfloat16: 1e-5, torch.float16: 1e-5}
    svd_parts.EIGH, svd_parts.SMALL = [(1, 1), (7, 3), (21, 16)], [1, 5, 17]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    found = {}
    for check in (*svd_parts.ALL, whole, ways):
        if check.__name__ not in sys.argv[2:] and (sys.argv[2:] or check is ways):
            continue
        try:
            found[check.__name__] = check(torch.ops.tmem) or ""
        except (AssertionError, RuntimeError) as error:
            found[check.__name__] = f"{type(error).__name__}: {error}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
