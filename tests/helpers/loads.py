"""How many loads stand one behind another in a Triton kernel, read from what Triton makes of its source (TTIR)."""

import re
from collections import defaultdict

_NAME = re.compile(r"%[\w#-]+")


def depths(ir: str) -> dict[str, list[int]]:
    """Argument -> for every load through it, how many loads are one behind another up to this one, itself included: by its
    address, its mask, and the conditions and bounds of what it stands in."""
    depth: dict[str, int] = defaultdict(int)
    root: dict[str, str] = {}
    around: list[int] = []  # depth of what decides whether, or how often, each open region runs
    found: dict[str, list[int]] = defaultdict(list)
    for line in ir.splitlines():
        if "tt.func" in line:
            root |= {name: name[1:] for name in _NAME.findall(line)}
            around.append(0)
            continue
        line = line.split(" loc(")[0].strip()
        if line.startswith("} else"):
            continue
        if line.startswith("}"):
            if around:
                around.pop()
            continue
        left, _, right = line.partition(" = ")
        operands = _NAME.findall(right or left)
        level = max([*(depth[x.split("#")[0]] for x in operands), *around], default=0)
        if right.startswith("tt.load"):
            level += 1
            found[root.get(operands[0], "")].append(level)
        if "scf.for" in line or "scf.while" in line:
            bounds = _NAME.findall(line.split("scf.for")[-1].split("iter_args")[0])
            deep = max((depth[x.split("#")[0]] for x in bounds[1:]), default=0)
            depth[bounds[0]] = deep
            for name, start in re.findall(r"(%[\w-]+) = (%[\w#-]+)", line.partition("iter_args")[2]):
                depth[name] = depth[start.split("#")[0]]
                if start in root:
                    root[name] = root[start]
        if right:
            for name in _NAME.findall(left):
                depth[name.split(":")[0].split("#")[0]] = level
                if operands and operands[0] in root and not right.startswith("tt.load"):
                    root[name] = root[operands[0]]
        if line.endswith("{"):
            condition = right.removeprefix("scf.if ") if right.startswith("scf.if") else line.removeprefix("scf.if ")
            names = _NAME.findall(condition.split("->")[0]) if "scf.if" in line else bounds[1:] if "scf.for" in line else []
            around.append(max((depth[x.split("#")[0]] for x in names), default=0))
    return found
