"""Weights of a web server, which answers as it likes for what does not lie beside them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modelchain.commit import hash_file
from modelchain.resolved import ResolvedStage
from modelchain.store import Forbidden
from modelchain_trainer.model import build_model
from modelchain_trainer.position import Position
from tests.trainer.test_trunk import weights_of

StageOf = Callable[..., ResolvedStage]
Train = Callable[..., Position]
Serve = Callable[[Path, str], str]
PAGE = b"<!doctype html>\n<title>Not here</title>"


def answer(handler: BaseHTTPRequestHandler, folder: Path, missing: str) -> None:
    """A range of a file of the folder. `missing`: what is answered for another."""
    path = folder / handler.path.rpartition("/")[2]
    if missing == "page" and not path.is_file():
        content = PAGE
    elif path.is_file():
        content = path.read_bytes()
    else:
        handler.send_response(int(missing))
        handler.end_headers()
        return
    begin, _, end = str(handler.headers["Range"]).removeprefix("bytes=").partition("-")
    first, last = int(begin), min(int(end), len(content) - 1)
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
    handler.send_header("Content-Length", str(last + 1 - first))
    handler.end_headers()
    handler.wfile.write(content[first : last + 1])


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves a folder; returns its address."""
    servers: list[ThreadingHTTPServer] = []

    def serve(folder: Path, missing: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self, folder, missing)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Nothing is logged."""

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/data"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("missing", ["404", "403", "400", "200", "page"])
def test_one_file_is_read_whatever_a_server_answers_for_what_is_not_beside_it(
    missing: str, stage_of: StageOf, train: Train, serve: Serve, tmp_path: Path
) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    config = stage_of("held").model_config_
    state = build_model(config, seed=3).state_dict()
    torch.save(state, folder / "epoch.pt")
    given = {"uri": f"{serve(folder, missing)}/epoch.pt", "sha256": hash_file(folder / "epoch.pt").sha256}
    held = stage_of("held", epochs=0, fromWeights=given)
    train(held)
    after = load_file(weights_of(held))
    assert all(torch.equal(tensor, after[name]) for name, tensor in state.items())


def test_a_folder_whose_server_refuses_what_is_not_there_is_read_and_the_refusal_is_logged(
    stage_of: StageOf, train: Train, serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "served"
    config: Any = stage_of("held").model_config_
    vision, text = config.vision, config.text
    tower = {"hidden_size": 16, "intermediate_size": 64, "num_attention_heads": 1, "hidden_act": "gelu"}
    assert (vision.width, text.width) == (16, 16)
    transformers.CLIPModel(
        transformers.CLIPConfig(
            projection_dim=config.embed_dim,
            vision_config=tower
            | {
                "num_hidden_layers": vision.layers,
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
            },
            text_config=tower
            | {"num_hidden_layers": text.layers, "max_position_embeddings": text.context_length},
        )
    ).save_pretrained(folder)
    sha256 = hash_file(folder / "model.safetensors").sha256
    uri = serve(folder, "403")
    held = stage_of("held", epochs=0, fromWeights={"uri": uri, "sha256": sha256})
    with caplog.at_level(logging.WARNING):
        train(held)
    assert any("preprocessor_config.json: the server refuses" in line for line in caplog.messages)
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        Forbidden, match=r"none of open_clip_model\.safetensors, model\.safetensors, .*may be read"
    ):
        train(stage_of("again", epochs=0, fromWeights={"uri": uri, "sha256": sha256}))
