"""Run by `make sanitize`: builds the CPU kernels with AddressSanitizer and UndefinedBehaviorSanitizer, and runs in a process of
its own, for each set of instructions that this processor has, random calls of every op (fuzz.py), spoiled ones past the
Python checks, and promises of checks.py. An argument: the number of calls.
Exit code 0: nothing was found, and every planted fault was."""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "sanitized"
FAULTS = {
    "write_beyond": "heap-buffer-overflow",
    "leave_type": "signed integer overflow",
}


def main() -> int:
    names = "libasan.so", "libstdc++.so"  # the second too, as the first wraps what it throws with
    asked = [subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True) for name in names]
    runtime = ":".join(done.stdout.strip() for done in asked)
    if not os.path.isabs(runtime):
        print("sanitize: skipped, as g++ has no libasan here; install it (Debian: libasan8, Fedora: libasan)")
        return 0
    build()
    for fault, message in FAULTS.items():
        done = child(runtime, "baseline", "--fault", fault)
        if done.returncode == 0 or message not in done.stderr:
            print(f"sanitize: the planted fault {fault} was not seen:\n{done.stderr[-2000:]}")
            return 1
    for instructions in sets():
        start = time.perf_counter()
        done = child(runtime, instructions, *sys.argv[1:])
        if done.returncode:
            print(f"sanitize: {instructions} failed:\n{done.stdout[-2000:]}{done.stderr[:6000]}")  # which begins with the fault
            return 1
        print(f"sanitize: {instructions}: {done.stdout.strip()} in {time.perf_counter() - start:.0f} s, no fault")
    return 0


def build() -> None:
    cmake = Path(sys.executable).parent / "cmake"
    settings = [f"-DPython_EXECUTABLE={sys.executable}", "-DTMEM_CUDA=OFF", "-DTMEM_SANITIZE=ON"]
    for step in (["-S", ROOT, "-B", BUILD, "-G", "Unix Makefiles", *settings], ["--build", BUILD, "--parallel", "2"]):
        subprocess.run([cmake, *step], check=True, stdout=subprocess.DEVNULL)
    wrong = ROOT / "tests/wrong/one_too_far.cpp"
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-shared", "-fPIC", "-g"]
    subprocess.run(["g++", *flags, str(wrong), "-o", str(BUILD / "one_too_far.so")], check=True)


def sets() -> list[str]:
    import torch

    from tmem.machine import cpu_bf16

    level = {"DEFAULT": 0, "AVX2": 1, "AVX512": 2}.get(torch.backends.cpu.get_cpu_capability(), 0)
    return ["baseline", "avx2", "avx512", "avx512bf16"][: level + 1 + (level == 2 and cpu_bf16() != "")]


def child(runtime: str, instructions: str, *arguments: str) -> subprocess.CompletedProcess:
    env = {
        **os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0", "TMEM_CPU": instructions,
        "UBSAN_OPTIONS": "print_stacktrace=1", "OMP_NUM_THREADS": "2",
    }  # fmt: skip
    command = [sys.executable, __file__, "--inside", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def inside(*arguments: str) -> None:
    import torch

    if arguments[:1] == ("--fault",):
        import ctypes

        wrong, x = ctypes.CDLL(str(BUILD / "one_too_far.so")), torch.zeros(100)
        wrong.write_beyond(ctypes.c_void_p(x.data_ptr()), ctypes.c_long(100)) if arguments[1] == "write_beyond" else None
        wrong.leave_type(ctypes.c_int(2**31 - 1)) if arguments[1] == "leave_type" else None
        return
    load = torch.ops.load_library  # the sanitized library in place of the one beside tmem/__init__.py
    torch.ops.load_library = lambda path: load(str(BUILD / "libtmem_cpu.so") if path.endswith("libtmem_cpu.so") else path)
    import checks
    import fuzz
    import pass_checks
    import token_checks
    from fuzz import FUZZED

    from tmem import ops

    calls = int(arguments[0]) if arguments else 1000
    torch.set_num_threads(2)
    fuzz.run(ops, 0, calls)
    raw = 0
    for seed in range(calls):
        raw += fuzz.refused_raw(seed, FUZZED[seed % len(FUZZED)])
    mine = checks.strided, checks.attend, checks.alike, checks.step, checks.copy, checks.decode
    for check in (*mine, *token_checks.TOKEN, *token_checks.CPU):
        check(ops)
    for check in pass_checks.PASS:
        torch.manual_seed(0)  # as in the tests: of two numbers a sum may cancel
        check(torch.ops.tmem)
    print(f"{calls} calls, and {calls} spoiled ones past the checks, of which {raw} were refused,", end=" ")


if __name__ == "__main__":
    sys.exit(inside(*sys.argv[2:]) if sys.argv[1:2] == ["--inside"] else main())
