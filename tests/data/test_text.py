"""Text as sequences of characters: every character once, the vocabulary by counting, and what is refused."""

import collections
import hashlib
import platform

import numpy as np
import pytest

from hessabs.cli.main import main
from hessabs.data import DatasetNotFoundError, load
from hessabs.data import text as text_lib
from hessabs.data.text import load_text

SAMPLE = "".join(chr(40 + i % 7) * (i % 7 + 1) for i in range(60)) + "é\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(SAMPLE.encode())
    return f"text:{path}"


def written(sequences, vocabulary):
    return "".join((*vocabulary, "?")[token] for token in sequences)


def test_every_character_is_predicted_once_and_the_last_tenth_is_test(file):
    text = load_text(file, 5)
    cut = len(SAMPLE) - len(SAMPLE) // 10
    for part, source in ((SAMPLE[:cut], text.train), (SAMPLE[cut:], text.test)):
        tokens = source["tokens"]
        assert tokens.dtype == np.int32
        assert tokens.shape == ((len(part) - 1) // 5, 6)
        assert (tokens[1:, 0] == tokens[:-1, -1]).all()
        assert written(tokens[:, 1:].ravel(), text.vocabulary) == part[1 : 1 + tokens[:, 1:].size]
        assert written(tokens[0], text.vocabulary) == part[:6]


def test_the_vocabulary_is_that_of_the_most_common_characters(file, monkeypatch):
    counts = collections.Counter(SAMPLE)
    want = sorted(counts, key=lambda character: (-counts[character], character))
    assert load_text(file, 5).vocabulary == "".join(want)
    monkeypatch.setattr(text_lib, "_KNOWN", 3)
    text = load_text(file, 5)
    assert text.vocabulary == "".join(want[:3])
    tokens = np.concatenate([part["tokens"].ravel() for part in (text.train, text.test)])
    assert sorted(set(tokens.tolist())) == [0, 1, 2, 3]  # 3 is the unknown one
    other = load_text(file, 5, "(é")
    assert other.facts["vocabulary"] == "(é"
    assert set(other.test["tokens"].ravel().tolist()) <= {0, 1, 2}


def test_a_data_set_of_it(file):
    dataset = load(file, num_test=2, sequence_length=5)
    assert dataset.num_classes == len(set(SAMPLE)) + 1
    assert dataset.class_names[-1] == "unknown"
    assert len(dataset.test) == 2
    assert dataset.facts["sha256"] == hashlib.sha256(SAMPLE.encode()).hexdigest()
    assert dataset.facts["characters"] == len(SAMPLE)
    assert load("stdlib").train["tokens"].shape[1] == 65


def test_the_standard_library_is_what_lies_there(tmp_path, monkeypatch, capsys):
    text = load_text("stdlib")
    assert len(text.vocabulary) == 95
    assert len(text.train) > 30_000
    assert text.facts["python"] == platform.python_version()
    assert main(["data", "list", f"--data_dir={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert f"modules of Python {platform.python_version()}, 95 different ones known" in said
    assert text.facts["sha256"][:16] in said

    monkeypatch.setattr(text_lib.sysconfig, "get_path", lambda name: str(tmp_path))
    modules = text_lib._MODULES.split()
    for number, module in enumerate(modules):
        if module != "cmd":
            (tmp_path / f"{module}.py").write_text(f"x = {number:100d}\n")
    facts = load_text("stdlib").facts
    assert (facts["missing"], facts["modules"]) == (["cmd"], len(modules) - 1)
    assert facts["characters"] == 105 * facts["modules"]
    assert text_lib.describe("stdlib", facts).endswith("; without cmd, which it lacks.")
    for module in modules[:50]:
        (tmp_path / f"{module}.py").unlink(missing_ok=True)
    with pytest.raises(DatasetNotFoundError, match=f"which {tmp_path} does not hold: name a file of text"):
        load_text("stdlib")
    assert main(["data", "list", f"--data_dir={tmp_path}"]) == 0
    assert "does not hold" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sequence_length": 0}, "`sequence_length` must be at least 1, got 0"),
        ({"sequence_length": 30}, "at least 310 characters, for sequences of 30 in its last tenth"),
        ({"vocabulary": "aba", "sequence_length": 5}, "hold each character once, got 'aba'"),
        ({"image_size": 32}, "is text: leave image_size, got 32"),
        ({"resize": 32}, "is text: leave resize, got 32"),
        ({"train_split": "extra"}, "has no splits by name: leave train_split"),
    ],
)
def test_refusals(file, options, said):
    with pytest.raises(ValueError, match=said):
        load(file, **options)


def test_files_that_are_no_text(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"none\.txt cannot be read \(No such file or directory\)"):
        load(f"text:{tmp_path / 'none.txt'}")
    (tmp_path / "bytes").write_bytes(b"ab\xff" * 999)
    with pytest.raises(ValueError, match="must be in UTF-8; its byte 2 is not"):
        load(f"text:{tmp_path / 'bytes'}")
    with pytest.raises(ValueError, match="`digits` is not text: leave sequence_length"):
        load("digits", sequence_length=8)
