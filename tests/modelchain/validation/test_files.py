from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest

from modelchain.errors import ExitCode, MissingInputError, ModelChainError, PermissionRefusedError
from modelchain.validation import InvalidChain, check_file, load_chains
from tests.modelchain.documents import REMOVED, document

CHAIN = """\
# a family
apiVersion: modelchain.dev/v1alpha1
kind: ModelChain
metadata: {name: family}
spec:
  store: {uri: runs}
  data:
    shards: ["data/{0..3}.tar"]
    samples: 5000
  training:
    epochs: 2
    learningRate: 1e-3
  stages:
    - name: tiny
      model: ViT-T-16
    - name: small
      model: ViT-S-16
"""


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "chain.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def messages(path: Path) -> list[str]:
    with pytest.raises(InvalidChain) as caught:
        load_chains(path)
    assert caught.value.exit_code == ExitCode.DATA
    return str(caught.value).splitlines()


def test_a_good_file_gives_its_chains(tmp_path: Path) -> None:
    (chain,) = load_chains(written(tmp_path, CHAIN))
    assert (chain.metadata.name, len(chain.spec.stages)) == ("family", 2)
    assert chain.spec.training is not None and chain.spec.training.learning_rate == 0.001


def test_message_says_file_line_field_problem_and_remedy(tmp_path: Path) -> None:
    path = written(tmp_path, CHAIN.replace("epochs: 2", "epochs: 1.5"))
    assert messages(path) == [
        f"{path}:11: spec.training.epochs: is 1.5, a whole number is needed; write 1 or 2"
    ]


def test_missing_field_is_placed_at_what_surrounds_it(tmp_path: Path) -> None:
    path = written(tmp_path, CHAIN.replace("      model: ViT-S-16\n", ""))
    (message,) = messages(path)
    assert message.startswith(f"{path}:16: spec.stages[1].model: the stage has no model; ")


def test_problems_of_all_documents_come_in_the_order_of_lines(tmp_path: Path) -> None:
    second = CHAIN.replace("name: family", "name: other").replace("samples: 5000", "samples: -1")
    path = written(tmp_path, CHAIN.replace("kind: ModelChain", "kind: ModelChian") + "---\n" + second)
    first, *_, last = messages(path)
    assert f'{path}:3: kind: "ModelChian"' in first and first.endswith("write kind: ModelChain")
    assert f"{path}:27: spec.data.samples: -1 is out of range" in last


def test_duplicate_key_is_refused_with_both_lines(tmp_path: Path) -> None:
    (message,) = messages(
        written(tmp_path, CHAIN + "    - name: base\n      name: large\n      model: ViT-B-16\n")
    )
    assert (
        ":19: spec.stages[2].name: the field is written twice, first in line 18; remove one of the two"
        in message
    )


def test_nan_is_refused_where_it_stands(tmp_path: Path) -> None:
    (message,) = messages(written(tmp_path, CHAIN.replace("1e-3", ".nan")))
    assert ":12: spec.training.learningRate: .nan is no number that JSON knows" in message


def test_unreadable_required_value_is_not_called_missing_too(tmp_path: Path) -> None:
    (message,) = messages(written(tmp_path, CHAIN.replace("name: tiny", "name: !secret tiny")))
    assert ":14: spec.stages[0].name: the tag !secret has no meaning here" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "the file is empty"),
        (b"# nothing\n---\n", "the file is empty"),
        (b"apiVersion: v1\nkind: Secret\n", "has no ModelChain"),
        (b"just text", 'the document is "just text", not a ModelChain'),
        (b"- a\n- b\n", "the document is a list, not a ModelChain"),
        (b"a: b: c", ":1: column 5: not valid YAML"),
        (b"a: b\n\tc: d\n", "not valid YAML"),
        (b"a: \xff\n", "not UTF-8"),
        ("a: 1\n".encode("utf-16"), "not UTF-8"),
        (b"[" * 5000, "nested more than"),
    ],
)
def test_what_is_no_chain_is_one_clear_line(tmp_path: Path, text: bytes, words: str) -> None:
    (message,) = messages(written(tmp_path, text))
    assert words in message


def test_a_document_without_a_kind_is_taken_for_a_chain(tmp_path: Path) -> None:
    found = messages(written(tmp_path, CHAIN.replace("kind: ModelChain\n", "")))
    assert len(found) == 1 and "kind: is missing" in found[0]


def test_another_version_of_the_resource_is_refused(tmp_path: Path) -> None:
    (message,) = messages(written(tmp_path, CHAIN.replace("v1alpha1", "v2")))
    assert "write apiVersion: modelchain.dev/v1alpha1" in message


def test_other_resources_in_the_file_are_passed_over(tmp_path: Path) -> None:
    other = "apiVersion: v1\nkind: Secret\nmetadata: {name: s3}\n---\n"
    assert len(load_chains(written(tmp_path, other + CHAIN))) == 1


def test_a_list_as_kubectl_prints_it_gives_its_chains(tmp_path: Path) -> None:
    good, bad = document(), document({("data", "samples"): REMOVED})
    listing = {"apiVersion": "v1", "kind": "List", "items": [good | {"status": {"phase": "Running"}}]}
    assert len(load_chains(written(tmp_path, json.dumps(listing)))) == 1
    (message,) = messages(written(tmp_path, json.dumps(listing | {"items": [bad]})))
    assert "items[0].spec.data.samples: is missing" in message


def test_two_chains_of_one_name_are_refused(tmp_path: Path) -> None:
    (message,) = messages(written(tmp_path, CHAIN + "---\n" + CHAIN))
    assert 'metadata.name: another chain of this file is named "family" too' in message


@pytest.mark.parametrize("name", ["", "Family", "a_b", "-a", "a" * 254])
def test_a_name_that_kubernetes_refuses_is_refused(tmp_path: Path, name: str) -> None:
    (message,) = messages(written(tmp_path, json.dumps(document() | {"metadata": {"name": name}})))
    assert "metadata.name: " in message


def test_a_name_too_long_for_a_label_is_refused(tmp_path: Path) -> None:
    (message,) = messages(written(tmp_path, json.dumps(document() | {"metadata": {"name": "a" * 64}})))
    assert (
        "metadata.name: the name has 64 characters, and its jobs carry it as a label; write at most 63"
        in message
    )


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(CHAIN.encode())))
    assert load_chains("-")[0].metadata.name == "family"


@pytest.mark.parametrize("name", ["absent.yaml", "folder", "file/chain.yaml"])
def test_a_missing_file_ends_with_its_own_exit_code(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(MissingInputError, match=name) as caught:
        load_chains(tmp_path / name)
    assert caught.value.exit_code == ExitCode.NO_INPUT == 66


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_says_so(tmp_path: Path) -> None:
    path = written(tmp_path, CHAIN)
    path.chmod(0)
    with pytest.raises(PermissionRefusedError):
        load_chains(path)


def test_a_path_that_is_none_is_a_users_error() -> None:
    with pytest.raises(ModelChainError):
        check_file("chain\0.yaml")
