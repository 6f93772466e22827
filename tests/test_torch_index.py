"""Where `make` takes PyTorch from, decided against an index made here."""

import http.server
import platform
import re
import socket
import threading
import time
from pathlib import Path

import pytest
import torch_index


@pytest.fixture
def index(tmp_path):
    """A package index on this machine that has torch."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "index.html").write_text("<a href='torch.whl'>torch</a>")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=tmp_path)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def plain_linux(monkeypatch):
    """Linux without a GPU, and a pip that was told nothing."""
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch_index, "has_gpu", lambda: False)
    monkeypatch.setattr(torch_index, "pip_settings", lambda: "global.find-links='wheels'\n")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.usefixtures("plain_linux")
def test_linux_without_a_gpu_takes_the_small_build(index):
    assert torch_index.choose(index) == (index, f"{index}, without CUDA: there is no GPU")


@pytest.mark.parametrize(
    "system, machine", [("Darwin", "arm64"), ("Windows", "AMD64"), ("Linux", "s390x")]
)
@pytest.mark.usefixtures("plain_linux")
def test_other_systems_take_pips_index(index, monkeypatch, system, machine):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert torch_index.choose(index)[0] is None


@pytest.mark.usefixtures("plain_linux")
def test_a_gpu_takes_cuda(index, monkeypatch):
    monkeypatch.setattr(torch_index, "has_gpu", lambda: True)
    found, why = torch_index.choose(index)
    assert found is None and "there is a GPU" in why


@pytest.mark.parametrize("said", ["global.index-url='https://mirror'", ":env:.no-index='1'"])
@pytest.mark.usefixtures("plain_linux")
def test_an_index_of_the_users_own_is_left_alone(index, monkeypatch, said):
    monkeypatch.setattr(torch_index, "pip_settings", lambda: said)
    assert torch_index.choose(index) == (None, "the index of your pip settings")
    assert not torch_index.has_index("global.extra-index-url='https://more'")


@pytest.mark.usefixtures("plain_linux")
def test_an_index_that_does_not_answer_is_given_up_in_seconds(index):
    found, why = torch_index.choose(f"{index}/nowhere")
    assert found is None and "does not answer" in why
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        start = time.monotonic()
        assert not torch_index.reachable(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.3)
        assert time.monotonic() - start < 3


def test_it_prints_what_pip_needs_and_one_line_why(monkeypatch, capsys):
    monkeypatch.setenv("TORCH_INDEX", "https://mine")
    torch_index.main()
    out, err = capsys.readouterr()
    assert re.fullmatch(r"--index-url https://mine torch>=\S+ torchvision>=\S+\n", out)
    assert err == "PyTorch comes from https://mine, as you said.\n"
    makefile = (Path(torch_index.ROOT) / "Makefile").read_text("utf-8")
    assert "book/_tools/torch_index.py" in makefile
