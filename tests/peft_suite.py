"""PEFT's own tests, run on the adapters of this package: `make peft-suite`, or this script with names of its files.

The source package of the installed PEFT is downloaded, its tables of methods are replaced by ours, and all tests that
walk them are run. Models of the Hub are replaced by random ones of the same architectures, which are made here; what
needs more than that is skipped. Prints what passed, failed and was skipped, and compares with ``EXCEPTIONS``; exits
with 1 if another test fails.
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import pytest
import torch
import transformers
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers

from qcircuit_peft import BottleneckConfig, QCircuitConfig, QPAConfig

FILES = (
    "test_custom_models.py",
    "test_decoder_models.py",
    "test_encoder_decoder_models.py",
    "test_feature_extraction_models.py",
    "test_seq_classifier.py",
    "test_target_parameters.py",
)

# Tests that fail: a pattern of their names, what they say, and why. One of them that passes is told, too.
MERGING = "|".join(
    (
        r"test_merge_layers(?!_multi\[circuit)\w*",
        r"test_delete_merged_adapter_\w+",
        r"test_disable_adapters_with_merging",
        r"test_multiple_active_adapters_merge_and_unmerge",
        r"test_forward_b?float16(_no_autocast)?",
        r"test_safe_merge",
        r"test_sequential_merge_matches_batch_merge",
        r"test_unmerge_after_sequential_merge_restores_base",
    )
)
EXCEPTIONS: list[tuple[str, str, str]] = [
    (
        r"test_merge_layers_is_deterministic_in_train_mode\[circuit MHA",
        "dropout is for inputs",
        "there is no dropout where the weights of an attention are adapted, and one is refused",
    ),
    (rf"({MERGING})\[[Bb]ottleneck", "is not linear", "a bottleneck adapter is not linear, and is not merged"),
    (
        r"test_(only_params_are_updated|training_custom_models)\[circuit Conv1D",
        "",
        "a frame of a width of 1 has no parameters that could change",
    ),
    (
        r"test_from_pretrained_config_construction\[[Gg]enerated",
        "",
        "a generated adapter notes what it was made for in a copy of its configuration",
    ),
    (
        r"test_merge_layers_multi\[Generated(?!.*(Llama|Gemma))",
        "",
        "two generated adapters of one seed, and so of one configuration, are the same",
    ),
    (
        r"test_save_load_roundtrip_fsdp_wrapped\[generated",
        "",
        "where generated adapters start is drawn from their configuration, not stored, and this test changes it",
    ),
    (r"test_parameters_after_loading_model\[generated 3", "NaN", "a rate of 0.5 leads this generator to NaN"),
]


class Generated(QPAConfig):
    """A generated LoRA: what PEFT's tests give a method that has no option of that name is its base method's."""

    def __init__(self, **fields: Any) -> None:
        of_base = {name: fields.pop(name) for name in ("r", "modules_to_save") if name in fields}
        small = {"base": LoraConfig(**of_base), "chunk_size": 64, "layers": 2, "widths": [8]}
        super().__init__(**{**small, **fields})


# Fields of each configuration, for whole models; custom models name their targets.
R = {"r": 4, "alpha": 4}
KINDS: dict[str, tuple[type, dict[str, Any]]] = {
    "circuit": (QCircuitConfig, R),
    "shared": (QCircuitConfig, {**R, "share": "kind", "layers": 2}),
    "ring": (QCircuitConfig, {**R, "ansatz": "ring_ry_cz", "width": "qudit"}),
    "taylor": (QCircuitConfig, {**R, "frame": "taylor"}),
    "tensor_train": (QCircuitConfig, {**R, "factorization": "tensor_train"}),
    "shared_core": (QCircuitConfig, {**R, "factorization": "shared_core"}),
    "quantized": (QCircuitConfig, {**R, "quantization": {"bits": 4, "packed": False}}),
    "bottleneck": (BottleneckConfig, {"r": 4}),
    "generated": (Generated, {"r": 4}),
}
LAST = r".*(fc2|fc_out|mlp\.c_proj|down_proj|wo|\.\d+\.output\.dense)"  # of feed-forward blocks
WHOLE = ("circuit", "shared", "bottleneck", "generated")  # those for whole models, whose tests are many
OURS = (QCircuitConfig, BottleneckConfig, Generated)


def custom_cases() -> list[tuple[Any, ...]]:
    """Rows for PEFT's small models: where, and with which targets."""
    places: list[tuple[str, str, dict[str, Any]]] = [
        ("1", "MLP", {"target_modules": "lin0"}),
        ("2", "MLP", {"target_modules": ["lin0", "lin1"], "exclude_modules": ["lin1"]}),
        ("3", "MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
        ("Conv1D", "EmbConv1D", {"target_modules": ["conv1d"], "r": 1}),
        ("MHA 1", "MHA", {"target_modules": ["mha"]}),
        ("MHA 2", "MHA", {"target_modules": ["mha", "lin0"], "r": 2}),
    ]
    return [
        (f"{name} {place}", model, cls, {**fields, **targets})
        for name, (cls, fields) in KINDS.items()
        for place, model, targets in places
        if name == "circuit" or place in ("1", "3")
    ]


def pairs() -> list[tuple[Any, ...]]:
    """Rows for two adapters that are active together: on the same layer, and on two."""
    found = []
    for name, (cls, fields) in KINDS.items():
        fields = {**fields, "r": 2, "init_weights": False}  # the least width is 2
        for told, second in (("same", "lin0"), ("different", "lin1")):
            one, two = ({**fields, "target_modules": [target]} for target in ("lin0", second))
            if cls is Generated:
                two["seed"] = 1  # one seed draws one adapter
            found.append((f"{name} {told}", name, cls, one, two))
    return found


def whole_models(task: str) -> list[tuple[type, dict[str, Any]]]:
    """Rows for whole models."""
    found = []
    for name in WHOLE:
        cls, fields = KINDS[name]
        found.append((cls, {"task_type": task, "target_modules": LAST if cls is BottleneckConfig else None, **fields}))
    return found


def on_parameters(rows: list[Any], folder: Path) -> list[tuple[Any, ...]]:
    """PEFT's rows for target_parameters, for circuits."""
    targets = ("task_type", "target_modules", "target_parameters")
    kept = ({name: fields[name] for name in targets} for _, _, fields in rows)
    return [(stand_in(row[0], folder), QCircuitConfig, R | fields) for row, fields in zip(rows, kept, strict=True)]


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1024,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 1024, "bos_token_id": 0, "eos_token_id": 0}
HALF = {**SMALL, "num_key_value_heads": 2}
SEQ2SEQ = {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 8, "vocab_size": 1024}
BART = {"d_model": 32, "vocab_size": 1024, "max_position_embeddings": 64} | {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))
}
OPT = {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 128}
# Architectures by the end of their names on the Hub: the class of the model, and its size.
EXPERTS = {**HALF, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
STAND_INS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny-GptOssForCausalLM": ("GptOss", EXPERTS),
    "tiny-Llama4ForCausalLM": ("Llama4Text", {**EXPERTS, "intermediate_size_mlp": 64, "num_experts_per_tok": 1}),
    "OPTForCausalLM": ("OPT", OPT),
    "GPT2LMHeadModel": ("GPT2", GPT),
    "gpt2": ("GPT2", GPT),
    "GPTJForCausalLM": ("GPTJ", {**GPT, "rotary_dim": 4}),
    "LlamaForCausalLM": ("Llama", HALF),
    "MistralForCausalLM": ("Mistral", HALF),
    "tiny-dummy-qwen2": ("Qwen2", HALF),
    "Gemma3ForCausalLM": ("Gemma3Text", {**HALF, "head_dim": 8}),
    "T5ForConditionalGeneration-calibrated": ("T5", {**SEQ2SEQ, "decoder_start_token_id": 0}),
    "BartForConditionalGeneration": ("Bart", BART),
    "BertModel": ("Bert", SMALL),
    "RobertaModel": ("Roberta", SMALL),
    "DebertaModel": ("Deberta", SMALL),
    "DebertaV2Model": ("DebertaV2", SMALL),
    "BertForSequenceClassification": ("Bert", SMALL),
    "RobertaForSequenceClassification": ("Roberta", SMALL),
    "LlamaForSequenceClassification-3.2": ("Llama", {**HALF, "num_labels": 1, "pad_token_id": 0}),
}
CLASSES = {
    "Gemma3Text": "Gemma3ForCausalLM",
    "Llama4Text": "Llama4ForCausalLM",
    "OPT": "OPTForCausalLM",
    "GPT2": "GPT2LMHeadModel",
}


def stand_in(name: str, folder: Path) -> str:
    """The folder of a random model for one of the Hub."""
    found = folder / name.rpartition("/")[2]
    end, (kind, size) = next((end, row) for end, row in STAND_INS.items() if name.endswith(end))
    if not (found / "config.json").is_file():
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**size)
        cls = next(
            getattr(transformers, known)
            for known in (
                end.partition("-")[0],
                CLASSES.get(kind),
                f"{kind}ForConditionalGeneration",
                f"{kind}ForCausalLM",
            )
            if known and hasattr(transformers, known)
        )
        cls(config).save_pretrained(found)
        words = Tokenizer(models.WordLevel({f"w{at}": at for at in range(1024)}, unk_token="w3"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="w0", eos_token="w1", bos_token="w2", unk_token="w3"
        ).save_pretrained(found)
    return str(found)


# What PEFT's tests import, but need only for what is on the Hub: what takes its place.
NEEDLESS = {
    "from datasets import load_dataset\n": "load_dataset = lambda *given, **more: pytest.skip('needs the Hub')\n",
    '"lora.ParamWrapper does not support': '"does not support',
    "from diffusers import StableDiffusionPipeline\n": "class StableDiffusionPipeline: ...\n",
}


class Suite:
    """A plugin of pytest: replaces PEFT's tables, runs what walks them, and counts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: set[str] = set()
        self.passed: list[str] = []
        self.failed: dict[str, str] = {}
        self.skipped: Counter[str] = Counter()

    @pytest.hookimpl(tryfirst=True)
    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Fill the tables of a module, which its tests know by the list itself, before the first of them is made."""
        module = metafunc.module
        if module.__name__ in self.done:
            return
        self.done.add(module.__name__)
        tasks = {"decoder": "CAUSAL_LM", "encoder_decoder": "SEQ_2_SEQ_LM", "seq_classifier": "SEQ_CLS"}
        task = next((task for name, task in tasks.items() if f"test_{name}" in module.__name__), "FEATURE_EXTRACTION")
        tables = {
            "TEST_CASES": custom_cases,
            "ALL_PEFT_CONFIG_CLASSES": lambda: list(OURS),
            "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES": pairs,
            "ALL_CONFIGS": lambda: whole_models(task),
        }
        if module.__name__.endswith("test_target_parameters"):
            rows = on_parameters(module.ALL_CONFIGS, self.folder / "models")
            tables["ALL_CONFIGS"] = lambda: rows
        for name, table in vars(module).items():
            if isinstance(table, list) and name in tables:
                table[:] = tables[name]()
            elif isinstance(table, list) and name.endswith(("MODELS_TO_TEST", "_GRID_MODELS")):
                table[:] = [stand_in(model, self.folder / "models") for model in table]

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Keep the tests that are given one of our configurations."""
        for item in items:
            values = getattr(getattr(item, "callspec", None), "params", {}).values()
            item.ours = any(value in OURS for value in values if isinstance(value, type))
        gone = [item for item in items if not item.ours]
        items[:] = [item for item in items if item.ours]
        config.hook.pytest_deselected(items=gone)

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.partition("::")[2]
        if report.failed:
            self.failed[name] = report.longrepr.reprcrash.message if hasattr(report.longrepr, "reprcrash") else "?"
        elif report.skipped:
            reason = re.sub(r"^Skipped: ", "", report.longrepr[2]) if isinstance(report.longrepr, tuple) else "xfail"
            if reason != "xfail" or report.when == "call":
                self.skipped[reason.partition("\n")[0]] += 1
        elif report.when == "call":
            self.passed.append(name)

    def told(self) -> int:
        """Print what came out; the number of deviations from ``EXCEPTIONS``."""
        known = {
            name: why
            for name, message in self.failed.items()
            for pattern, says, why in EXCEPTIONS
            if re.search(pattern, name) and says in message
        }
        others = {name: message for name, message in self.failed.items() if name not in known}
        mended = [name for name in self.passed if any(re.search(pattern, name) for pattern, *_ in EXCEPTIONS)]
        for name in mended:
            print(f"PASSED, though it is an exception: {name}")
        for name, message in others.items():
            print(f"FAILED {name}\n    {message.partition(chr(10))[0][:300]}")
        for why, count in Counter(known.values()).items():
            print(f"{count} known to fail: {why}")
        for reason, count in self.skipped.most_common():
            print(f"{count} skipped: {reason[:150]}")
        print(
            f"PEFT {peft.__version__}, torch {torch.__version__}, transformers {transformers.__version__}: "
            f"{len(self.passed)} passed, {len(self.failed)} failed ({len(known)} of them known), "
            f"{self.skipped.total()} skipped"
        )
        return len(others) + len(mended)


def sources(folder: Path) -> Path:
    """PEFT's tests, from the source package of the installed version."""
    tests = folder / "peft_tests"
    if not (tests / "__init__.py").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        wanted = [f"peft=={peft.__version__}", "--no-deps", "--no-binary", "peft", "--no-build-isolation"]
        command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "-d", str(folder)]
        subprocess.run([*command, *wanted], check=True)
        with tarfile.open(next(folder.glob("peft-*.tar.gz"))) as archive:
            for member in archive.getmembers():
                inside = re.fullmatch(r"[^/]+/tests/(\w+\.py)", member.name)
                if inside and member.isfile():
                    tests.mkdir(exist_ok=True)
                    text = archive.extractfile(member).read().decode()  # type: ignore[union-attr]
                    for line, instead in NEEDLESS.items():
                        text = text.replace(line, instead)
                    (tests / inside[1]).write_text(text)
        (folder / "pytest.ini").write_text("[pytest]\n")
        (tests / "__init__.py").write_text("")
    return tests


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", default=FILES, help="names of PEFT's files of tests")
    parser.add_argument("-k", default="", help="as pytest's")
    parser.add_argument("--folder", type=Path, default=Path(f".venv/peft-suite-{peft.__version__}"))
    given = parser.parse_args()
    tests = sources(given.folder.resolve())
    warnings.simplefilter("ignore")
    suite = Suite(tests.parent)
    arguments = ["-q", "--no-header", "--tb=short", "--show-capture=no", "-p", "no:cacheprovider", "-W", "ignore"]
    arguments += ["-c", str(tests.parent / "pytest.ini"), f"--rootdir={tests.parent}"]
    arguments += [*(("-k", given.k) if given.k else ()), *(str(tests / name) for name in given.files)]
    code = pytest.main(arguments, plugins=[suite])
    deviations = suite.told()
    return int(bool(deviations) or code not in (0, 1))


if __name__ == "__main__":
    sys.exit(main())
