import hashlib
import pickle
import shutil
import socket
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from entropi.host.data import cifar


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 3, 32, 32), np.uint8)


@pytest.fixture(scope="module")
def archive(images, tmp_path_factory):
    """An archive as CIFAR's authors made theirs, of ten images, and torchvision's class for it."""
    folder = tmp_path_factory.mktemp("archive")
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    contents = {
        "data_batch_1": {"data": images[:4].reshape(4, -1), "labels": [2, 0, 1, 0]},
        "data_batch_2": {"data": images[4:7].reshape(3, -1), "labels": [1, 2, 2]},
        "test_batch": {"data": images[7:].reshape(3, -1), "labels": [0, 1, 2]},
        "batches.meta": {"label_names": ["cat", "dog", "ant"]},
    }
    for name, content in contents.items():
        (batches / name).write_bytes(pickle.dumps(content))
    with tarfile.open(folder / CIFAR10.filename, "w:gz") as tar:
        tar.add(batches, batches.name)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder))
    Thread(target=server.serve_forever, daemon=True).start()

    class Small(CIFAR10):
        url = f"http://127.0.0.1:{server.server_port}/{CIFAR10.filename}"
        tgz_md5 = md5(folder / CIFAR10.filename)
        train_list = [[name, md5(batches / name)] for name in ("data_batch_1", "data_batch_2")]
        test_list = [["test_batch", md5(batches / "test_batch")]]
        meta = {**CIFAR10.meta, "md5": md5(batches / "batches.meta")}

        file = folder / CIFAR10.filename

    yield Small
    server.shutdown()
    server.server_close()


def check(found, images):
    assert found.classes == ("ant", "cat", "dog")
    assert (found.train.images == images[:7]).all() and (found.test.images == images[7:]).all()
    assert found.train.labels.tolist() == [0, 1, 2, 1, 2, 0, 0] and found.test.labels.tolist() == [1, 2, 0]


@pytest.fixture
def nowhere():
    """An address where nobody answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/cifar-10-python.tar.gz"


def without_the_net(archive, nowhere):
    return type("Offline", (archive,), {"url": nowhere})


def test_downloaded_once_then_read_without_the_net(archive, images, tmp_path, nowhere):
    check(cifar.read(archive, tmp_path / "data"), images)
    check(cifar.read(without_the_net(archive, nowhere), tmp_path / "data"), images)


def test_no_network(archive, images, tmp_path, nowhere):
    offline = without_the_net(archive, nowhere)
    with pytest.raises(ValueError) as caught:
        cifar.read(offline, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{nowhere} cannot be downloaded (") and "\n" not in message
    assert message.endswith(f"put it, MD5 {archive.tgz_md5}, into {tmp_path} by hand, or give the images as npz:PATH")
    shutil.copy(archive.file, tmp_path)
    check(cifar.read(offline, tmp_path), images)


def test_other_bytes_are_never_unpickled(archive, tmp_path, nowhere):
    offline = without_the_net(archive, nowhere)
    cifar.read(archive, tmp_path)
    (tmp_path / CIFAR10.filename).unlink()
    (tmp_path / CIFAR10.base_folder / "test_batch").write_bytes(b"cos\nabort\n(tR.")
    with pytest.raises(ValueError, match="cannot be downloaded"):
        cifar.read(offline, tmp_path)
