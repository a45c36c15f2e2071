"""The fused kernels against the reference simulator: interpreted on a CPU, as they are on a GPU."""

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import bounds
import numpy as np
import pytest
import reference
import torch
from test_native import draw, normal

from qcircuit_peft import Circuit, Op, columns, load
from qcircuit_peft.ansatz import WIRINGS
from qcircuit_peft.backends.native import fused
from qcircuit_peft.circuit import Affine
from qcircuit_peft.gates import GATES

pytest.importorskip("triton", reason="Triton is not installed")
FAMILY = load("simplified_two_design")
STEP = 1e-5


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where the kernels run; the test ends with all four of them having run, once forward and once back."""
    if request.param == "cpu":
        if torch.cuda.is_available():
            pytest.skip("Triton either interprets or compiles")
        interpreted(monkeypatch)
    launch, ran = fused._run, []
    monkeypatch.setattr(fused, "_run", lambda name, *given, **sizes: (ran.append(name), launch(name, *given, **sizes)))
    yield request.param
    assert set(ran) == {"halves", "join", "part", "slopes"}


def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the kernels on CPU tensors.

    Triton's interpreter wraps all of ``triton.language`` anew whenever one kernel calls another function, so that every
    call is slower than the one before; once a module is enough.
    """
    from triton.runtime.interpreter import InterpretedFunction

    call, seen = InterpretedFunction.__call__, set()

    def called(self, *given, **sizes):
        if self.fn.__module__ not in seen:
            seen.add(self.fn.__module__)
            return call(self, *given, **sizes)
        return self.rewrite()(*given, **sizes)

    monkeypatch.setattr(InterpretedFunction, "__call__", called)
    monkeypatch.setattr(fused, "DEVICES", {"cpu"})


def check(circuit: Circuit, k: int, device: str, batch: tuple[int, ...] = (1,)) -> None:
    """k columns and their gradient against the reference and its slope."""
    k = min(k, circuit.dim)
    angles = draw(circuit, *batch, dtype=torch.float32)
    given = angles.clone().to(device).requires_grad_()
    found = columns(circuit, given, k)
    assert found.dtype == torch.float32 and found.shape == (*batch, circuit.dim, k)
    weights = normal(*found.shape)
    (slope,) = torch.autograd.grad(found, given, weights.to(found), materialize_grads=True)
    for index in np.ndindex(batch):
        own = angles[index].double()

        def value(point, index=index):
            return (weights[index] * torch.tensor(reference.columns(circuit, point.numpy(), k)).real).sum()

        bounds.close(found[index].cpu(), reference.columns(circuit, own.numpy(), k), bounds.gates(circuit), size=1)
        shifts = STEP * torch.eye(len(own), dtype=torch.float64)
        expected = torch.stack([(value(own + s) - value(own - s)) / (2 * STEP) for s in shifts])
        bounds.close(slope[index].cpu(), expected, bounds.gates(circuit), size=weights[index].norm())


def among(dims: tuple[int, ...], *ops: Op) -> Circuit:
    """These ops between rotations of all wires."""
    each = [Op("RY", (w,)) for w in range(len(dims))]
    return Circuit(dims, [*each, *ops, *each])


# --- the same numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, gate in GATES.items() if gate.real])
def test_every_real_gate(name, device):
    """On one side of the cut and across it, from below."""
    for wires in [(1, 2), (2, 0)] if GATES[name].wires == 2 else [(0,)]:
        check(among((2, 2, 2), Op(name, wires, adjoint=wires[0] != 1)), 3, device)


@pytest.mark.parametrize("name", [name for name in WIRINGS if name != "each"])
def test_every_wiring(name, device):
    pairs = WIRINGS[name](3)
    check(among((2, 2, 2), *(Op("CZ", pair) for pair in pairs)), 5, device)


@pytest.mark.parametrize("q", range(1, 9))
def test_every_number_of_qubits(q, device):
    check(FAMILY.circuit(qubits=q, layers=1), 3, device)


@pytest.mark.parametrize("layers", [0, 2])
def test_layers(layers, device):
    check(FAMILY.circuit(qubits=3, layers=layers), 2, device)


@pytest.mark.parametrize("dims", [(3, 2, 2), (5, 2, 2), (3, 3, 2), (2, 3), (7,), (2, 3, 5), (4, 2)], ids=str)
def test_odd_wires(dims, device):
    check(FAMILY.circuit(dims=dims, layers=1), 5, device)


@pytest.mark.parametrize("k", [1, 5, 7, 11, 16])
def test_numbers_of_columns(k, device):
    check(FAMILY.circuit(qubits=4, layers=1), k, device)


@pytest.mark.parametrize("batch", [(), (3,), (2, 1, 2)], ids=str)
@pytest.mark.parametrize("dims", [(2, 2), (3, 2)], ids=str)
def test_factors(dims, batch, device):
    check(FAMILY.circuit(dims=dims, layers=1), 3, device, batch)


CASES = {
    "one angle of several gates": Circuit((2, 2), [Op("RY", (0,), (0,)), Op("CX", (1, 0)), Op("RY", (1,), (0,))]),
    "several rotations in a row": Circuit((2, 2), [*[Op("RY", (0,))] * 3, Op("H", (0,)), Op("CZ", (0, 1))]),
    "angles made of others": Circuit((2, 2), [Op("RY", (0,)), Op("RY", (1,))], [Affine(((0, 2.0),), 0.3)] * 2),
    "neighbouring levels": Circuit((5, 2), [Op("RYN", (0,)), Op("CZ", (0, 1)), Op("RYN", (1,)), Op("RY", (0,))]),
}


@pytest.mark.parametrize("circuit", CASES.values(), ids=list(CASES))
def test_other_circuits(circuit, device):
    check(circuit, 3, device)


def test_more_tiles_than_one(device, monkeypatch):
    """Blocks of columns, strips and tiles that do not divide what they cover."""
    monkeypatch.setattr(fused, "_TILE", 16)
    monkeypatch.setattr(fused, "_LEFT", 4)
    monkeypatch.setattr(fused, "_RIGHT", 8)
    check(FAMILY.circuit(qubits=4, layers=1), 7, device)
    check(FAMILY.circuit(dims=(3, 2, 2), layers=1), 7, device)


# --- as the operator does -----------------------------------------------------------------------------------


def test_second_derivatives_are_the_torch_form_s(device):
    circuit = FAMILY.circuit(qubits=3, layers=1)
    found = []
    for dtype in (torch.float64, torch.float32):
        angles = draw(circuit, 2, dtype=torch.float32).to(device, dtype).requires_grad_()
        weights = normal(2, circuit.dim, 3).to(angles)
        (slope,) = torch.autograd.grad((weights * columns(circuit, angles, 3)).sum(), angles, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), angles)[0])
    torch.autograd.grad(columns(circuit, angles, 3).sum(), angles)  # the first derivative alone is the kernels'
    size = 8 * float(weights.norm()) ** 2 * circuit.n_angles**0.5
    bounds.close(found[1].cpu(), found[0].cpu(), bounds.gates(circuit), size)


@pytest.mark.parametrize("how", ["compiled", "vmapped", "strided", "under no_grad"])
def test_whoever_calls(how, device):
    circuit = FAMILY.circuit(qubits=3, layers=1)
    plain = inspect.unwrap(columns)  # without the checks of conftest.py
    angles = draw(circuit, 2, dtype=torch.float32).to(device).requires_grad_()
    weights = normal(2, 8, 3, dtype=torch.float32).to(device)
    expected = columns(circuit, angles, 3)
    (slope,) = torch.autograd.grad(expected, angles, weights)
    run = lambda a: plain(circuit, a, 3)  # noqa: E731
    if how == "compiled":
        torch._dynamo.reset()
        run = torch.compile(run, fullgraph=True, backend="aot_eager")
    elif how == "vmapped":
        run = torch.func.vmap(run)
    elif how == "strided":
        angles, weights = (x.detach().mT.contiguous().mT for x in (angles, weights))
        angles.requires_grad_()
    else:
        with torch.no_grad():
            assert torch.equal(run(angles), expected)
    found = run(angles)
    assert torch.equal(found, expected)
    assert torch.equal(torch.autograd.grad(found, angles, weights)[0], slope)


# --- where they run -----------------------------------------------------------------------------------------


def test_what_they_serve(monkeypatch):
    two_design = FAMILY.circuit(qubits=4, layers=1)
    angles = torch.zeros(1, two_design.n_angles)
    assert not fused.serves(angles, two_design, 3)  # on a CPU, unless Triton interprets
    interpreted(monkeypatch)
    assert fused.serves(angles, two_design, 3)
    assert not fused.serves(angles.double(), two_design, 3)
    assert not fused.serves(angles[:0], two_design, 3)
    assert not fused.serves(angles, two_design, 3, torch.nn.Buffer(angles).as_subclass(Kept))
    deep, complex_ = FAMILY.circuit(qubits=4, layers=30), Circuit((2, 2), [Op("RX", (0,))])
    assert not fused.serves(torch.zeros(1, deep.n_angles), deep, 3)
    assert not fused.serves(torch.zeros(1, 1), complex_, 3)
    wide = Circuit((2,) * 18, [Op("RY", (w,)) for w in range(18)])  # 512 rows a side
    assert not fused.serves(torch.zeros(1, 18), wide, 3)
    monkeypatch.setenv("QCIRCUIT_PEFT_TRITON", "0")
    fused.runs_on.cache_clear()
    assert not fused.serves(angles, two_design, 3)
    fused.runs_on.cache_clear()


class Kept(torch.Tensor):
    pass


def test_without_triton_all_is_torch():
    script = """
import sys; sys.modules["triton"] = None
import torch
from qcircuit_peft import columns, load
from qcircuit_peft.backends.native import fused
fused.DEVICES = {"cpu"}
circuit = load("simplified_two_design").circuit(qubits=2, layers=1)
angles = torch.zeros(1, circuit.n_angles, requires_grad=True)
columns(circuit, angles, 2).sum().backward()
print(fused.serves(angles, circuit, 2))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr[-2000:]


@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux")
def test_they_compile_for_a_gpu():
    """Every kernel, for compute capability 9.0, without a GPU."""
    script = Path(__file__).parent / "compile_kernels.py"
    given = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-W", "ignore", script], capture_output=True, text=True, env=given)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {line.split(": ")[1] for line in done.stdout.splitlines()} == {"halves", "join", "part", "slopes"}
