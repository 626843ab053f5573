"""State dicts by file and by address: what is loaded, kept, and refused."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import tiny
from ftwt import models
from ftwt.config import DataConfig
from ftwt.networks.sources import resolve
from toys import same


class Quiet(SimpleHTTPRequestHandler):
    asked: list[str] = []

    def log_message(self, *_: object) -> None:
        self.asked.append(self.path)


@pytest.fixture
def address(tiny_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the folder `served`, without a slash at its end."""
    Path("served").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny_home / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(Quiet, "asked", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory="served"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def saved(name: str, classes: int = 10) -> tuple[torch.nn.Module, str]:
    """A network whose state dict is served, and its digest."""
    network = tiny.network(classes)
    torch.save(network.state_dict(), Path("served") / name)
    return network, hashlib.sha256((Path("served") / name).read_bytes()).hexdigest()


def test_a_file_gives_its_weights_and_as_many_classes(address: str) -> None:
    network, _ = saved("net.pth", classes=4)
    assert same(models.create(tiny.NAME, weights="served/net.pth"), network)
    wrapped = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save(wrapped, "served/wrapped.pth")  # as from within DataParallel
    assert same(models.create(tiny.NAME, weights="served/wrapped.pth"), network)
    with pytest.raises(ValueError, match="another architecture"):
        models.create(tiny.NAME, weights="served/net.pth", num_classes=10)
    with pytest.raises(ValueError, match="give one of them"):
        models.create(tiny.NAME, weights="served/net.pth", pretrained=True)
    with pytest.raises(FileNotFoundError):
        models.create(tiny.NAME, weights="served/no.pth")


def test_an_address_is_asked_once_and_its_file_checked_each_time(address: str) -> None:
    network, digest = saved("net.pth")
    weights = f"{address}/net.pth?raw=1#sha256={digest}"
    source = resolve(tiny.NAME, weights)
    for _ in range(2):
        assert same(source.load(), network) and not source.load().training
    assert Quiet.asked == ["/net.pth?raw=1"]
    prepared = source.prepare(DataConfig(mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0)))
    assert prepared is not None and prepared.mean == (0.1, 0.2, 0.3)
    [kept] = Path("cache/ftwt").iterdir()
    kept.write_bytes(b"another")
    with pytest.raises(ValueError, match="truncated or changed; delete it"):
        source.load()


def test_what_an_address_must_not_be_is_told(address: str) -> None:
    _, digest = saved("net.pth")
    create = partial(models.create, tiny.NAME)
    with pytest.raises(ValueError, match=r"needs its checksum.*#sha256=DIGEST"):
        create(weights=f"{address}/net.pth")
    with pytest.raises(ValueError, match="needs its checksum"):
        create(weights=f"{address}/net.pth#sha256=12ab")
    with pytest.raises(ValueError, match="the checksum is another file's"):
        create(weights=f"{address}/net.pth#sha256={'0' * 64}")
    with pytest.raises(ConnectionError, match="could not download .*404.*some other way"):
        create(weights=f"{address}/none.pth#sha256={digest}")
    with pytest.raises(ValueError, match=r"ends in none of .pt, .pth"):
        create(weights=f"{address}/net.zip#sha256={digest}")
    with pytest.raises(ValueError, match=r"write MODEL --weights http"):
        resolve(f"{address}/net.pth#sha256={digest}")
    assert not list(Path("cache/ftwt").iterdir())
    code = b"cos\nsystem\n(S'touch ran'\ntR."
    (Path("served") / "code.pt").write_bytes(code)
    with pytest.raises(ValueError, match="which could run code"):
        create(weights=f"{address}/code.pt#sha256={hashlib.sha256(code).hexdigest()}")
    assert not Path("ran").exists()
