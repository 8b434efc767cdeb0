"""`vlm serve` over real HTTP on a free port: what it answers, what it refuses, and that nothing brings it down."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import signal
import socket
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from phantoms import phantom

from seg_backbone.io import read_mask, write_volume
from seg_backbone.preview import slice_png
from vlm.infer.conversation import Conversation
from vlm.infer.shelf import Shelf, scans_of

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")
pytest.importorskip("python_multipart")
pytestmark = pytest.mark.usefixtures("one_thread")


class Client:
    """Requests to one port; returns (status, JSON or bytes)."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        if body is not None and not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})}
        connection.request(method, path, body, headers or {})
        reply = connection.getresponse()
        content = reply.read()
        connection.close()
        return reply.status, json.loads(content) if "json" in reply.headers["Content-Type"] else content

    def upload(self, name: str, content: bytes):
        edge = uuid.uuid4().hex
        head = f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        body = head + content + f"\r\n--{edge}--\r\n".encode()
        return self("POST", "/api/uploads", body, {"Content-Type": f"multipart/form-data; boundary={edge}"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """served/phantom_0000.nii.gz, served/broken.nii.gz, served/deep/again.nii.gz and secret.nii.gz outside."""
    folder = tmp_path_factory.mktemp("scans")
    write_volume(phantom()[0], folder / "served" / "phantom_0000.nii.gz")
    write_volume(phantom()[0], folder / "served" / "deep" / "again.nii.gz")
    write_volume(phantom()[0], folder / "secret.nii.gz")
    (folder / "served" / "broken.nii.gz").write_text("the patient moved")
    return folder


@pytest.fixture(scope="module")
def shelf(engine, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    served = folder / "served"
    return Shelf(engine, {served: scans_of(served)}, tmp_path_factory.mktemp("shelf"))


@pytest.fixture(scope="module")
def client(shelf: Shelf):
    from vlm.infer.server import make_app

    server = uvicorn.Server(uvicorn.Config(make_app(shelf), log_level="critical"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield Client(listener.getsockname()[1])
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def phantom_id(client) -> str:
    return next(one["id"] for one in client("GET", "/api/scans")[1] if one["name"] == "phantom")


def test_scans_are_listed_and_described(client, shelf, phantom_id) -> None:
    status, listed = client("GET", "/api/scans")
    assert status == 200 and sorted(one["name"] for one in listed) == ["broken", "phantom"]
    assert client("GET", "/api")[1]["model"] == shelf.engine.version
    status, scan = client("GET", f"/api/scans/{phantom_id}")
    assert status == 200 and scan["modality"] == "CT"
    assert (scan["shape"], scan["slices"]) == ([40, 40, 30], {"axial": 30, "coronal": 40, "sagittal": 40})
    assert len(scan["instances"]) == len(shelf.scan(phantom_id).instances) > 0
    assert [one["open"] for one in client("GET", "/api/scans")[1] if one["id"] == phantom_id] == [True]


def test_an_answer_is_the_engines(client, shelf, phantom_id) -> None:
    asked = {"question": "How many tumours are there?", "type": "counting"}
    status, answer = client("POST", f"/api/scans/{phantom_id}/ask", asked)
    expected = shelf.engine.ask(shelf.scan(phantom_id), asked["question"], "counting").to_json()
    assert status == 200 and answer | {"seconds": 0} == expected | {"seconds": 0}


def test_a_session_is_a_conversation(client, shelf, phantom_id) -> None:
    talk = Conversation(shelf.engine, shelf.scan(phantom_id))
    key, other = (client("POST", "/api/sessions", {"scan": phantom_id})[1]["session"] for _ in range(2))
    lines = ["Where are the tumours?", "And the volume of the largest?", "How far is it from the parotid?"]
    for line in lines:
        talk.ask(line)
        status, turn = client("POST", f"/api/sessions/{key}/ask", {"question": line})
        expected = talk.turns[-1].to_json()
        for one in (turn, expected):
            one["answer"]["seconds"] = 0
        assert status == 200 and turn == expected
    assert [turn["question"] for turn in client("GET", f"/api/sessions/{key}")[1]] == lines
    assert client("GET", f"/api/sessions/{other}") == (200, [])
    assert client("DELETE", f"/api/sessions/{key}")[0] == 200
    assert client("GET", f"/api/sessions/{key}")[0] == 404


def test_mask_and_slices(client, shelf, phantom_id, tmp_path: Path) -> None:
    status, content = client("GET", f"/api/scans/{phantom_id}/mask")
    (tmp_path / "mask.nii.gz").write_bytes(content)
    scan = shelf.scan(phantom_id)
    assert status == 200
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.nii.gz").array, scan.mask.array)
    status, content = client("GET", f"/api/scans/{phantom_id}/slice?plane=coronal&index=7")
    assert status == 200 and content == slice_png(scan.volume, scan.mask, "coronal", 7)
    plain = client("GET", f"/api/scans/{phantom_id}/slice?plane=coronal&index=7&overlay=false")[1]
    assert np.ptp(imread(io.BytesIO(plain))[..., :3], axis=2).max() == 0
    assert imread(io.BytesIO(client("GET", f"/api/scans/{phantom_id}/slice")[1])).shape == (40, 40, 4)


def test_the_page_loads_nothing_from_elsewhere(client) -> None:
    status, page = client("GET", "/")
    assert status == 200 and b"<title>flare-vlm</title>" in page
    assert b"http:" not in page and b"https:" not in page and b"src=" not in page.replace(b".src=", b"")


def test_uploads(client, shelf, folder: Path, tmp_path: Path) -> None:
    content = (folder / "secret.nii.gz").read_bytes()
    status, scan = client.upload("..\\..//mine_0000.nii.gz", content)
    assert status == 200 and scan["name"] == "mine" and scan["uploaded"]
    kept = shelf.entry(scan["id"]).path
    assert kept.read_bytes() == content and kept.is_relative_to(shelf.folder)
    assert client("POST", f"/api/scans/{scan['id']}/ask", {"question": "How many tumours?"})[0] == 200
    assert client("DELETE", f"/api/scans/{scan['id']}")[0] == 200
    assert not kept.exists() and client("GET", f"/api/scans/{scan['id']}")[0] == 404
    before = list(shelf.folder.rglob("*"))
    reaching = b"NDims = 3\nDimSize = 40 40 30\nElementType = MET_SHORT\nElementDataFile = /etc/passwd\n"
    nrrd = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: /etc/passwd\n\n"
    for name, body, says in [
        ("a.nii.gz", b"no scan", "a NIfTI file"),
        ("a.txt", content, "expected one file"),
        ("", content, "expected"),
        ("a.mhd", reaching, "expected one file"),
        ("a.mha", reaching, "a header that names another file"),
        ("a.nrrd", nrrd, "a header that names another file"),
        ("a.zip", b"PK", "expected"),
    ]:
        status, reply = client.upload(name, body)
        assert status == 400 and says in reply["error"] and "\n" not in reply["error"]
    assert list(shelf.folder.rglob("*")) == before, "nothing is left of them"


def test_only_what_is_served_may_be_opened(client, shelf, folder: Path) -> None:
    for path in ["deep/again.nii.gz", str(folder / "served" / "deep" / "again.nii.gz")]:
        status, scan = client("POST", "/api/scans", {"path": path})
        assert status == 200 and scan["name"] == "again"
    for path in ["../secret.nii.gz", str(folder / "secret.nii.gz"), "/etc/passwd", "deep/../../secret.nii.gz", "/"]:
        status, reply = client("POST", "/api/scans", {"path": path})
        assert status == 403 and reply["error"].startswith(f"{path}: expected a scan among those served")
    assert shelf._served(folder / "served2") is False
    shelf.anywhere = True
    assert client("POST", "/api/scans", {"path": str(folder / "secret.nii.gz")})[0] == 200
    shelf.anywhere = False


def test_the_least_recently_used_scan_is_closed(client, shelf, monkeypatch, phantom_id) -> None:
    monkeypatch.setattr("vlm.infer.shelf.OPEN_SCANS", 1)
    shelf.opened.clear()
    key = client("POST", "/api/sessions", {"scan": phantom_id})[1]["session"]
    first = client("POST", f"/api/sessions/{key}/ask", {"question": "Where are the tumours?"})
    client("POST", "/api/scans", {"path": "deep/again.nii.gz"})
    assert len(shelf.opened) == 1 and phantom_id not in shelf.opened
    second = client("POST", f"/api/sessions/{key}/ask", {"question": "How many of them are there?"})
    assert first[0] == second[0] == 200 and list(shelf.opened) == [phantom_id]


def test_bad_requests_are_one_line_of_json_and_the_server_goes_on(client, shelf, phantom_id, monkeypatch) -> None:
    ask = f"/api/scans/{phantom_id}/ask"
    broken = next(one["id"] for one in client("GET", "/api/scans")[1] if one["name"] == "broken")
    for method, path, body, status, says in [
        ("GET", "/api/scans/nobody", None, 404, "expected the id of a scan"),
        ("GET", f"/api/scans/{broken}", None, 400, "expected a NIfTI file"),
        ("POST", "/api/scans", {"path": "none.nii.gz"}, 400, "no such file"),
        ("POST", "/api/scans", {"path": 3}, 400, "expected path as a string"),
        ("POST", "/api/scans", {"path": "a\0b"}, 400, "expected path as a string"),
        ("POST", "/api/scans", {"path": "\ud83d"}, 400, "expected path as a string"),
        ("POST", "/api/scans", {"path": ""}, 400, "expected"),
        ("POST", ask, {"question": "\ud83d"}, 400, "half of a surrogate pair"),
        ("POST", ask, {"question": "?", "type": "\ud83d"}, 400, "expected a type among"),
        ("POST", "/api/scans", {"path": "x" * 300}, 400, "no such file"),
        ("POST", "/api/scans", [], 400, "expected a valid body"),
        ("POST", "/api/sessions", {"scan": "nobody"}, 404, "expected the id of a scan"),
        ("POST", "/api/sessions/nobody/ask", {"question": "?"}, 404, "expected the id of one that is open"),
        ("POST", ask, b"{", 400, "expected a valid body"),
        ("POST", ask, b"[" * 100000, 400, ""),
        ("POST", ask, b"\xff", 400, ""),
        ("POST", ask, {}, 400, "no question"),
        ("POST", ask, {"question": "How many?", "type": "guess"}, 400, "expected a type among"),
        ("POST", ask, {"question": "How many?", "options": "a;b"}, 400, "options as a list"),
        ("POST", ask, {"question": "long " * 3000}, 400, "at most 8000 characters"),
        ("POST", ask, {"question": "x" * (2 << 20)}, 413, "at most 1 MiB"),
        ("GET", f"/api/scans/{phantom_id}/slice?plane=oblique", None, 400, "one of axial, coronal, sagittal"),
        ("GET", f"/api/scans/{phantom_id}/slice?index=30", None, 400, "0 to 29"),
        ("GET", f"/api/scans/{phantom_id}/slice?index=x", None, 400, "query.index"),
        ("GET", "/nowhere", None, 404, "Not Found"),
        ("PUT", "/api/scans", None, 405, "Method Not Allowed"),
    ]:
        headers = {"Content-Type": "application/json"} if isinstance(body, bytes) else None
        code, reply = client(method, path, body, headers)
        assert (code, list(reply)) == (status, ["error"]), (path, body, reply)
        assert says in reply["error"] and "\n" not in reply["error"]
    assert broken in shelf.entries, "a scan that was served stays listed"

    def fail(*_: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(shelf.engine, "ask", fail)
    assert client("POST", ask, {"question": "How many?"}) == (500, {"error": "RuntimeError: first line second line"})
    monkeypatch.undo()
    assert client("POST", ask, {"question": "How many?"})[0] == 200


def test_pages_of_other_sites_are_refused(client) -> None:
    for headers in ({"Host": "evil.example"}, {"Host": "evil.example:8080"}, {"Origin": "http://evil.example"}):
        assert client("GET", "/api/scans", headers=headers)[0] == 403
    for host in (f"localhost:{client.port}", "localhost", "[::1]:9000"):
        assert client("GET", "/api/scans", headers={"Host": host, "Origin": f"http://{host}"})[0] == 200


def test_mistakes_in_the_call_are_told_before_the_models_load(run, monkeypatch, folder: Path, tmp_path: Path) -> None:
    monkeypatch.setattr("vlm.infer.engine.Engine.load", lambda *_: pytest.fail("the model was loaded"))
    code, _, stderr = run("serve", tmp_path / "none.nii.gz")
    assert code == 2 and "no such file" in stderr and stderr.count("\n") == 1
    code, _, stderr = run("serve", tmp_path)
    assert code == 2 and "a folder with scans" in stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, stderr = run("serve", folder / "served", "--port", taken.getsockname()[1])
    assert code == 2 and "expected a free port" in stderr and stderr.count("\n") == 1


def test_the_command_serves_until_it_is_interrupted(run, engine, monkeypatch, folder: Path) -> None:
    monkeypatch.setattr("vlm.infer.engine.Engine.load", lambda *_: engine)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Client(listener.getsockname()[1])
    replies = []

    def visit() -> None:
        try:
            for _ in range(200):
                with contextlib.suppress(ConnectionError):
                    (one,) = client("GET", "/api/scans")[1]
                    replies.append(client("POST", f"/api/scans/{one['id']}/ask", {"question": "How many tumours?"}))
                    return
                time.sleep(0.05)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    visitor = threading.Thread(target=visit)
    visitor.start()
    code, stdout, stderr = run("serve", folder / "secret.nii.gz", "--port", client.port)
    visitor.join()
    assert (code, stderr) == (0, "")
    assert stdout == f"http://127.0.0.1:{client.port} (scans: 1; Ctrl-C ends)\n"
    assert [status for status, _ in replies] == [200]
