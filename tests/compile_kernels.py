"""Compiles every kernel of ``butterflies.py`` for a GPU without one, and prints what it takes there.

    python tests/compile_kernels.py [--capability 90]

For each circuit its launches are recorded, with the types and constants that they have, in the place of running them.
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from qcircuit_peft import Circuit, load
from qcircuit_peft.backends.native import fused

CIRCUITS = {
    "4,096, 64 columns": (load("simplified_two_design").circuit(qubits=12, layers=1), 64),
    "4,096, all columns": (load("simplified_two_design").circuit(qubits=12, layers=2), 4096),
    "11,008 = 43 x 256, 8 columns": (load("simplified_two_design").circuit(dim=11008, layers=1), 8),
    "24 = 3 x 8, 5 columns": (load("simplified_two_design").circuit(dim=24, layers=1), 5),
    "1,024 of five layers, 16 columns": (load("simplified_two_design").circuit(qubits=10, layers=5), 16),
    "61 x 4, 1 column": (load("simplified_two_design").circuit(dim=244, layers=1), 1),
}
TYPES = {torch.float32: "*fp32", torch.int32: "*i32"}


def launches(circuit: Circuit, k: int) -> Iterator[tuple[str, dict[str, str], dict[str, Any]]]:
    """The name, types and constants of every launch for two factors."""
    from qcircuit_peft.backends.native import butterflies

    found = []

    def record(name: str, programs: int, *tensors: torch.Tensor, **sizes: Any) -> None:
        names = getattr(butterflies, name).arg_names
        given = dict(zip(names, tensors, strict=False)) | sizes
        constants = {key: value for key, value in given.items() if key.isupper() or (type(value), value) == (int, 1)}
        types = {key: TYPES[x.dtype] if isinstance(x, torch.Tensor) else "i32" for key, x in given.items()}
        types |= dict.fromkeys(constants, "constexpr")
        found.append((name, {key: types[key] for key in names}, constants))

    before, fused._run = fused._run, record
    try:
        own = fused.make_plan(circuit, k, torch.device("cpu"))
        rows = torch.zeros(2, circuit.n_angles)
        fused.columns_backward(own, rows, fused.columns(own, rows))
    finally:
        fused._run = before
    yield from {name: (name, *rest) for name, *rest in found}.values()


def main(capability: int) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from qcircuit_peft.backends.native import butterflies

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    for what, (circuit, k) in CIRCUITS.items():
        for name, types, constants in launches(circuit, k):
            source = ASTSource(fn=getattr(butterflies, name), signature=types, constexprs=constants)
            options = {"num_warps": 4, "enable_fp_fusion": True}
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
            assert made.asm["cubin"], name
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "kernel.cubin"
                path.write_bytes(made.asm["cubin"])
                told = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
            registers, stack = (int(re.search(rf"{word}:(\d+)", told).group(1)) for word in ("REG", "STACK"))
            print(f"{what}: {name}: {registers} registers, {stack} bytes of stack, {made.metadata.shared} bytes shared")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--capability", type=int, default=90)
    main(parser.parse_args().capability)
