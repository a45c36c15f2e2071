"""What a saved adapter says of itself: the model card, the configuration, and a push to a hub that is a stand-in."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import adapted, base, config, logits, told_by_a_fresh_process

from qcircuit_peft import QPAConfig
from qcircuit_peft.drawing import draw
from qcircuit_peft.tuner import circuits
from qcircuit_peft.tuner.card import BEGIN, END


def saved(folder: Path, net: Any = None) -> ModelCard:
    (net or adapted("llama")).save_pretrained(str(folder))
    return ModelCard.load(folder / "README.md")


def test_the_card_says_how_to_load_what_it_is_and_how_much(tmp_path: Path) -> None:
    net = adapted("llama", share="kind")
    card = saved(tmp_path, net)
    own = sum(p.numel() for p in net.parameters() if p.requires_grad)
    lora = get_peft_model(base("llama"), LoraConfig(r=8, target_modules=net.peft_config["default"].target_modules))
    theirs = sum(p.numel() for p in lora.parameters() if p.requires_grad)
    widest = max((circuit for _, circuit, _ in circuits(net)), key=lambda circuit: circuit.dim)
    for text in (
        "import qcircuit_peft",
        'PeftModel.from_pretrained(base, "FOLDER")',
        f"| this adapter | {own:,} |",
        f"| LoRA, r = 8 | {theirs:,} |",
        draw(widest),
        "angles 0.05, lambdas 0.02",
        f"PEFT {peft.__version__}, torch {torch.__version__}",
        "Apache-2.0",
        "KeyError: 'QCIRCUIT'",
        "pip install",
    ):
        assert text in card.text, text
    assert {"qcircuit-peft", "quantum-circuits"} <= set(card.data["tags"])
    assert card.data["library_name"] == "peft"


def test_a_card_is_brought_up_to_date_and_keeps_what_a_user_wrote(tmp_path: Path) -> None:
    card = saved(tmp_path)
    card.text = "my words" + card.text + "more of them"
    card.save(tmp_path / "README.md")
    again = saved(tmp_path, adapted("llama", "ring"))
    assert again.text.count(BEGIN) == again.text.count(END) == 1
    assert again.text.startswith("my words")
    assert again.text.rstrip().endswith("more of them") or "more of them" in again.text
    first, second = (text.partition("| this adapter |")[2].partition("\n")[0] for text in (card.text, again.text))
    assert first != second


def test_generated_adapters_and_others_methods(tmp_path: Path) -> None:
    net = get_peft_model(base("llama"), QPAConfig(base=LoraConfig(r=2, target_modules=["q_proj"]), chunk_size=64))
    assert "## `default`: QPA" in saved(tmp_path / "qpa", net).text
    lora = saved(tmp_path / "lora", get_peft_model(base("llama"), LoraConfig(target_modules=["q_proj"])))
    assert "qcircuit" not in lora.text + str(lora.data.to_dict())


@pytest.mark.parametrize("entry", ["default", "quantized"])
def test_the_configuration_names_library_and_version_and_means_the_same_without(entry: str, tmp_path: Path) -> None:
    net = adapted("llama", entry)
    saved(tmp_path, net)
    file = tmp_path / "adapter_config.json"
    data = json.loads(file.read_text())
    assert data["library"].startswith("qcircuit_peft ")
    assert data["library"].endswith("; import it before PEFT loads this adapter")
    expected = logits(net, "llama")
    for other in (data, {**data, "library": "another"}, {k: v for k, v in data.items() if k != "library"}):
        file.write_text(json.dumps(other))
        assert torch.equal(logits(PeftModel.from_pretrained(base("llama"), tmp_path), "llama"), expected)


STRANGER = """
import sys
from peft import PeftConfig
try:
    PeftConfig.from_pretrained(sys.argv[1])
except KeyError as error:
    assert "QCIRCUIT" in str(error)
else:
    raise AssertionError
text = open(sys.argv[1] + "/adapter_config.json").read() + open(sys.argv[1] + "/README.md").read()
assert "import it before PEFT loads" in text and "KeyError: 'QCIRCUIT'" in text
"""


def test_a_stranger_finds_what_to_do(tmp_path: Path) -> None:
    saved(tmp_path)
    told_by_a_fresh_process(STRANGER, tmp_path)


HUB = """
import base64, json, os, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
asked, files, broken = [], {}, False
class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"name": "me", "type": "user", "auth": {}} if "whoami" in self.path else {}, 200)
    def do_POST(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size); self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        asked.append((self.path, body))
        if "create" in self.path:
            return self.answer({"url": f"http://127.0.0.1:{server.server_port}/me/adapter", "id": "me/adapter"})
        if "preupload" in self.path:
            wanted = json.loads(body)["files"]
            return self.answer({"files": [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for file in wanted
            ]})
        if "commit" in self.path and broken:
            return self.answer({"error": "no"}, 400)
        if "commit" in self.path:
            for line in body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            url = f"http://127.0.0.1:{server.server_port}/me/adapter/commit/0"
            return self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": url, "hookOutput": ""})
        self.answer({"errors": [], "warnings": []})
    def answer(self, data, code=200):
        text = json.dumps(data).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *args): pass
server = HTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_test"}
os.environ |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
sys.path.insert(0, "tests")
from tiny import adapted, base, config, shake
net = adapted("bert")
net.push_to_hub("me/adapter")
made = json.loads(next(body for path, body in asked if "create" in path))
assert made.get("private") is True or made.get("visibility") == "private", made
assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= {*files}, files.keys()
assert b"import qcircuit_peft" in files["README.md"]
asked.clear()
net.push_to_hub("me/adapter", private=False)
made = json.loads(next(body for path, body in asked if "create" in path))
assert made.get("private") is False or made.get("visibility") == "public", made
folder = sys.argv[1]
for name, data in files.items():
    open(f"{folder}/{name}", "wb").write(data)
files.clear()
plain = base("bert")
plain.add_adapter(config("bert"))
pushed = folder + "/pushed"
os.mkdir(pushed)
open(pushed + "/notes", "w").write("mine")
shake(plain).save_pretrained(pushed, push_to_hub=True, repo_id="me/adapter")
saved = {name: open(f"{pushed}/{name}", "rb").read() for name in os.listdir(pushed)}
assert saved.pop("notes") == b"mine" and files == saved, (files.keys(), saved.keys())
files.clear()
os.chdir(folder)
plain.save_pretrained("adapter", push_to_hub=True)
assert json.loads([body for path, body in asked if "create" in path][-1])["name"] == "adapter" and files == saved
broken = True
try:
    shake(plain, seed=1).save_pretrained(pushed, push_to_hub=True, repo_id="me/adapter")
except Exception as error:
    assert "commit endpoint" in str(error), error
else:
    raise AssertionError
assert saved != {name: open(f"{pushed}/{name}", "rb").read() for name in saved}  # what is not uploaded is saved
assert sorted(os.listdir(pushed)) == sorted([*saved, "notes"])
"""


def test_pushed_privately_unless_asked(tmp_path: Path) -> None:
    told_by_a_fresh_process(HUB, tmp_path)
    for folder in (tmp_path, tmp_path / "adapter"):
        net = PeftModel.from_pretrained(base("bert"), folder)
        assert torch.equal(logits(net, "bert"), logits(adapted("bert"), "bert"))
        text = (folder / "adapter_config.json").read_text()
        (folder / "adapter_config.json").write_text(text.replace('"alpha": 48', '"alpha": 47'))
        with pytest.raises(ValueError, match="was not saved with this adapter_config"):
            PeftModel.from_pretrained(base("bert"), folder)


def test_names_cannot_break_a_card(tmp_path: Path) -> None:
    net = get_peft_model(base("llama"), config("llama"), adapter_name="a`|<b>")
    text = saved(tmp_path, net).text
    assert "## `a'/(b>`: QCIRCUIT" in text
