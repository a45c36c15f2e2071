"""A saved circuit adapter in the forms that other programs read: a plain LoRA, the merged model, OpenQASM."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from peft import PeftConfig, PeftModel, TaskType
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from transformers import CONFIG_NAME, AutoConfig, AutoTokenizer, PreTrainedModel

from qcircuit_peft import checks, files
from qcircuit_peft.fine_tuning.predict import refusing
from qcircuit_peft.fine_tuning.settings import TASK, place_of
from qcircuit_peft.interop import lower
from qcircuit_peft.qasm import to_qasm
from qcircuit_peft.text import shown
from qcircuit_peft.tuner import circuits
from qcircuit_peft.tuner.lora import convert_to_lora
from qcircuit_peft.tuner.saving import current

_AUTO = {
    TaskType.CAUSAL_LM: "AutoModelForCausalLM",
    TaskType.SEQ_2_SEQ_LM: "AutoModelForSeq2SeqLM",
    TaskType.SEQ_CLS: "AutoModelForSequenceClassification",
    TaskType.TOKEN_CLS: "AutoModelForTokenClassification",
    TaskType.QUESTION_ANS: "AutoModelForQuestionAnswering",
    TaskType.FEATURE_EXTRACTION: "AutoModel",
}


@dataclass(frozen=True)
class Converted:
    """What ``convert`` wrote: how many files of how many bytes; ``rank`` is LoRA's r, 0 for other forms."""

    form: str
    files: int
    bytes: int
    rank: int = 0


def loaded(folder: str | Path, base: str | None = None) -> PeftModel:
    """An adapter in a folder, of any method, on its base model: the one that it names, or ``base``.

    The class of the model is that of the adapter's task, or else the one of transformers that its configuration names;
    a model configuration beside the adapter says how many classes there are. Raises ValueError where none is said.
    """
    folder, told = Path(folder), shown(str(folder))
    if not (current(folder) / "adapter_config.json").is_file():
        raise ValueError(f"{told} holds no adapter: there is no adapter_config.json in it")
    with refusing(told):
        config: Any = PeftConfig.from_pretrained(str(folder))
        place = base or config.base_model_name_or_path
        name = _AUTO.get(config.task_type) or (config.auto_mapping or {}).get("base_model_class")
    if not isinstance(place, str) or not place:
        raise ValueError(f"{told} does not say which model it adapts; name it as base")
    place = place_of(place)
    auto: Any = getattr(transformers, str(name), None)
    known = isinstance(auto, type) and (issubclass(auto, PreTrainedModel) or name in _AUTO.values())
    if not known:
        raise ValueError(
            f"{told} does not say what kind of model it adapts: task_type is {shown(config.task_type)}, "
            f"the class {shown(name)}; allowed are {', '.join(sorted(_AUTO))}, or a class of transformers"
        )
    with refusing(told):
        own: dict[str, Any] = {"config": AutoConfig.from_pretrained(folder)} if (folder / CONFIG_NAME).is_file() else {}
        return PeftModel.from_pretrained(auto.from_pretrained(place, **own), folder)


def _as_lora(model: PeftModel, folder: Path, out: Path, rank: int | float | None) -> int:
    """With the classes and the columns of an adapter of ``fine_tune``: its copy is loaded and tried as it is."""
    for name in (CONFIG_NAME, TASK):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    lora, state = convert_to_lora(model, rank, uniform=True)
    save_file(state, out / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    lora.save_pretrained(str(out))
    return lora.r


def _merged(model: PeftModel, folder: Path, out: Path, rank: int | float | None) -> int:
    place = getattr(model.get_base_model().config, "name_or_path", "")
    merged: Any = model.merge_and_unload(safe_merge=True)  # type: ignore[operator]
    merged.save_pretrained(out)
    with suppress(OSError, ValueError):  # a model of images has none
        AutoTokenizer.from_pretrained(place).save_pretrained(out)
    return 0


def _as_qasm(model: PeftModel, folder: Path, out: Path, rank: int | float | None) -> int:
    for name, circuit, angles in circuits(model):
        files.write(out / f"{name.removeprefix('base_model.model.')}.qasm", to_qasm(lower(circuit, angles)))
    return 0


FORMS: dict[str, Callable[[PeftModel, Path, Path, int | float | None], int]] = {
    "lora": _as_lora,
    "merged": _merged,
    "qasm": _as_qasm,
}


def convert(
    folder: str | Path, out: str | Path, form: str = "lora", *, rank: int | float | None = None, base: str | None = None
) -> Converted:
    """Write a saved circuit adapter in another form, one of ``FORMS``, into a folder that is new or empty.

    lora: a plain LoRA for programs that know only that, and for ``evaluate`` and ``predict``; exact, or, for a ``rank``
    between 0 and 1, with the least rank that keeps this share of every update's energy. merged: the whole model with
    the update added, and its tokenizer. qasm: every trained circuit as OpenQASM 3, a file each, on qubits alone
    (``interop.lower``). base: another place of the pretrained model.

    Raises ValueError for another form, a folder that is not empty, and what cannot be converted.
    """
    checks.one_of("form", form, FORMS)
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{shown(str(target))} is not empty; name another folder")
    if rank is not None and form != "lora":
        raise ValueError(f"rank is LoRA's, but the form is {form!r}; leave it out")
    model = loaded(folder, base).eval()
    kind: Any = model.active_peft_config.peft_type
    if kind != "QCIRCUIT" and form != "merged":
        raise ValueError(f"{shown(str(folder))} is an adapter of the type {kind.value}; only circuits have this form")
    with files.new_folder(target) as draft:
        found = FORMS[form](model, Path(folder), draft, rank)
    sizes = [path.stat().st_size for path in target.iterdir()]
    return Converted(form, len(sizes), sum(sizes), found)
