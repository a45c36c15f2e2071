"""What the adapters of Llama-2-7B would need on a machine of 156 superconducting qubits.

    python benchmarks/resources.py [--error 0.1] [--backend fake_fez]

The model is on the meta device: no weights are needed. Every column of every frame is found by Hadamard tests, as
often as the error of delta W asks for; gates, depth and seconds are those of the tests on a copy of a device.
"""

import argparse

import torch
from peft import get_peft_model
from transformers import AutoModel, LlamaConfig

from qcircuit_peft import QCircuitConfig, parameter_count
from qcircuit_peft.analysis import adapter_resources

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "a pair of circuits for each module, r = 16": {"r": 16},
    'one pair for each kind (`share="kind"`), r = 64': {"r": 64, "share": "kind"},
    "the same on the attention only, r = 64": {"r": 64, "share": "kind", "target_modules": TARGETS[:3]},
}


def main() -> None:
    """Print the table of docs/devices.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--error", type=float, default=0.1, help="of delta W, relatively")
    parser.add_argument("--backend", default="fake_fez", help="a fake backend of qiskit_ibm_runtime")
    given = parser.parse_args()
    print("| adapter | parameters | qubits | columns | two-qubit gates of a test, depth | runs | seconds |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, options in ADAPTERS.items():
        with torch.device("meta"):
            model = AutoModel.from_config(LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32))
            config = QCircuitConfig(**{"target_modules": TARGETS, **options})
            size = parameter_count(config, model)
            model = get_peft_model(model, config)
        found = adapter_resources(model, error=given.error, backend=f"qiskit:{given.backend}")
        depth = max(test.two_qubit_depth for test in found.tests.values())
        print(
            f"| {name} | {size:,} | {found.qubits} | {found.columns:,} | {found.two_qubit:,}, {depth:,} | "
            f"{found.runs:.2g} | {found.seconds:,.0f} |"
        )


if __name__ == "__main__":
    main()
