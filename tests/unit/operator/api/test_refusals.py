"""Bad tokens, bad bytes, too much, too slow: a clean refusal, and the server goes on as it was."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from midwatch.operator.api.tokens import Role
from midwatch.tests.support.api_server import ApiServer, read_to_end
from midwatch.tests.support.certificates import write_certificate
from midwatch.tests.support.live_run import wait_until
from midwatch.tests.support.synthetic_run import SyntheticRun

SECRET = "s3cret-of-at-least-16"


@pytest.fixture(scope="module")
def tight(night: SyntheticRun) -> Iterator[ApiServer]:
    """A server of small bounds."""
    bounds: dict[str, Any] = {"connections": 8, "requests": 6, "streams": 2, "header_bytes": 8192}
    with ApiServer(night.folder, idle_s=0.5, stall_s=0.5, request_s=5.0, **bounds) as server:
        yield server


def assert_well(server: ApiServer) -> None:
    """The server answers as ever, by and by: those cut off may still be leaving."""

    def is_well() -> bool:
        with server.http() as http:
            return http.get("/v1/status").status_code == 200

    wait_until(is_well, "the server does not answer any more")
    assert "Traceback" not in server.log


def refusal(answer: httpx.Response) -> tuple[int, str]:
    assert set(answer.json()) == {"code", "message", "remedy"}
    return answer.status_code, answer.json()["code"]


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("", "token-missing"),
        ("Bearer", "token-missing"),
        ("Basic abc", "token-missing"),
        ("Bearer wrong", "token-wrong"),
        ("Bearer " + "x" * 5000, "token-wrong"),
        ("Bearer \xff\xfe", "token-wrong"),
    ],
)
def test_nobody_gets_in_without_a_token(server: ApiServer, header: str, code: str) -> None:
    headers = {"Authorization": header.encode("latin-1")} if header else {}
    with server.http(None) as http:
        for path in ("/v1/status", "/v1/events/stream", "/metrics", "/v1/interventions/x"):
            answer = http.get(path, headers=headers)
            assert refusal(answer) == (401, code)
            assert answer.headers["www-authenticate"] == "Bearer"
        answer = http.post("/v1/interventions", headers=headers, content=b"{")
        assert refusal(answer) == (401, code)
        assert http.get("/healthz").status_code == 200


def test_part_of_a_token_is_none(server: ApiServer) -> None:
    token = server.token(Role.OPERATOR)
    with server.http(None) as http:
        for shown in (token[:-1], token + "x", token.upper(), f"{token} {token}"):
            answer = http.get("/v1/status", headers={"Authorization": f"Bearer {shown}"})
            assert refusal(answer) == (401, "token-wrong")


def test_tokens_of_ones_own_are_read_anew_for_each_request(
    night: SyntheticRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "operator"
    path.write_text(SECRET)
    monkeypatch.setenv("MIDWATCH_TEST_VIEWER", "the-viewer-of-the-test")
    tokens = {"viewer": {"env": "MIDWATCH_TEST_VIEWER"}, "operator": {"file": str(path)}}
    with ApiServer(night.folder, {"tokens": tokens}) as server, server.http(None) as http:

        def shown(token: str) -> int:
            headers = {"Authorization": f"Bearer {token}"}
            return http.get("/v1/status", headers=headers).status_code

        assert [shown("the-viewer-of-the-test"), shown(SECRET)] == [200, 200]
        path.write_text("another-secret-of-16")
        assert [shown(SECRET), shown("another-secret-of-16")] == [401, 200]
        path.unlink()
        assert shown("another-secret-of-16") == 503
        assert "another-secret" not in server.log


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "body-not-json"),
        (b"{", 400, "body-not-json"),
        (b"\xff\xfe", 400, "body-not-json"),
        (b'{"action": "lr", "reason": "\xff"}', 400, "body-not-json"),
        (b"[" * 30_000, 400, "body-not-json"),
        (b'{"action": "lr", "reason": NaN}', 400, "body-not-json"),
        (b"[]", 422, "body-invalid"),
        (b"null", 422, "body-invalid"),
        (b'{"action": "lr", "reason": "x", "value": 1e999}', 422, "body-invalid"),
    ],
)
def test_bodies_that_are_no_request(server: ApiServer, body: bytes, status: int, code: str) -> None:
    with server.http() as http:
        headers = {"Content-Type": "application/json"}
        assert refusal(http.post("/v1/interventions", content=body, headers=headers)) == (
            status,
            code,
        )
    assert_well(server)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_a_web_page_could_send_is_refused(server: ApiServer, kind: str) -> None:
    with server.http() as http:
        body = b'{"action": "stop", "reason": "x"}'
        answer = http.post("/v1/interventions", content=body, headers={"Content-Type": kind})
        assert refusal(answer) == (415, "body-not-json")


def test_a_body_that_is_too_large_is_refused_by_its_header_or_on_the_way(
    server: ApiServer,
) -> None:
    most = server.order.bounds.body_bytes
    headers = {"Content-Type": "application/json"}
    with server.http() as http:
        body = b"x" * (most + 1)
        answer = http.post("/v1/interventions", content=body, headers=headers)
        assert refusal(answer) == (413, "body-too-large")
        pieces = (b"x" * 10_000 for _ in range(most // 10_000 + 20))
        answer = http.post("/v1/interventions", content=pieces, headers=headers)
        assert refusal(answer) == (413, "body-too-large")
    # Declared and never sent: the answer does not wait for it.
    with server.socket() as bare:
        bare.sendall(request_head(server, "content-length: 99999999999\r\n"))
        assert b" 413 " in bare.recv(65_536)
    assert_well(server)


def request_head(server: ApiServer, headers: str) -> bytes:
    token = server.token(Role.OPERATOR)
    return (
        "POST /v1/interventions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {token}\r\n{headers}\r\n"
    ).encode()


@pytest.mark.parametrize(
    "blob",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nhost: x\r\nx" + b"y" * 20_000,
        b"GET /v1/status HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
def test_bytes_that_are_no_http_are_answered_and_the_line_is_cut(
    server: ApiServer, blob: bytes
) -> None:
    with server.socket() as bare:
        bare.sendall(blob)
        bare.shutdown(socket.SHUT_WR)
        assert read_to_end(bare)[:13] in (b"HTTP/1.1 400 ", b"HTTP/1.1 404 ")
    assert_well(server)


def test_half_a_request_is_not_waited_for(tight: ApiServer) -> None:
    for begun in (b"", b"GET /v1/sta", request_head(tight, "content-length: 100\r\n") + b"{"):
        with tight.socket() as bare:
            bare.sendall(begun)
            seen = read_to_end(bare)
        # A body that does not come has the time of a request, and is told of it.
        assert seen.startswith(b"HTTP/1.1 503 ") if b"{" in begun else not seen
    assert_well(tight)


def test_a_body_that_never_ends_is_cut_off(tight: ApiServer) -> None:
    with tight.socket() as bare:
        bare.sendall(request_head(tight, "transfer-encoding: chunked\r\n"))
        with pytest.raises(OSError):
            send_for_ever(bare, b"2710\r\n" + b"x" * 10_000 + b"\r\n")
    assert_well(tight)


def send_for_ever(bare: socket.socket, piece: bytes) -> None:
    while True:
        bare.sendall(piece)


def test_a_body_that_breaks_off_or_breaks_the_rules_is_dropped(server: ApiServer) -> None:
    for headers, body in (
        ("content-length: 100\r\n", b"{"),
        ("transfer-encoding: chunked\r\n", b"zz\r\n"),
    ):
        with server.socket() as bare:
            bare.sendall(request_head(server, headers) + body)
            bare.shutdown(socket.SHUT_WR)
            assert b" 202 " not in read_to_end(bare)
    assert_well(server)


def test_connections_are_bounded_and_make_room_again(tight: ApiServer) -> None:
    bare = [tight.socket() for _ in range(tight.order.bounds.connections + 4)]
    answers = [read_to_end(connection) for connection in bare[-3:]]
    assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in answers)
    assert b'"code":"too-busy"' in answers[0]
    assert_well(tight)
    for connection in bare:
        connection.close()


def test_readers_that_never_read_are_cut_off_and_cost_next_to_nothing(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run", nodes=2, spares=1, slots=2)
    run.start("the first attempt")
    run.train(4000)
    run.close()
    paths = ("/v1/events/stream?after=0&stay=true", "/v1/state", "/v1/events?limit=5000")
    with ApiServer(run.folder, stall_s=0.5, streams=2) as server, server.http() as http:
        head = f" HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {server.token(Role.VIEWER)}\r\n\r\n"
        assert {http.get(path).status_code for path in paths[1:]} == {200}
        before_kb, bare = server.resident_kb(), [server.socket() for _ in range(12)]
        for number, connection in enumerate(bare):
            path = paths[number % 3]
            # Asked for again and again: an answer that is not read holds up those behind it.
            connection.sendall(f"GET {path}{head}".encode() * 100)
        wait_until(
            lambda: server.log.count("takes no more of its answer") >= 10, "not all were cut off"
        )
        # Twelve times what waited for them would be far more.
        assert server.resident_kb() - before_kb < 60_000
        for connection in bare:
            connection.close()
        assert_well(server)


def test_streams_are_bounded(tight: ApiServer) -> None:
    with tight.http() as http:
        path = "/v1/events/stream?stay=true"
        with http.stream("GET", path) as one, http.stream("GET", path) as two:
            # Kept: a stream whose reader is dropped is closed.
            readers = [answer.iter_bytes() for answer in (one, two)]
            assert all(next(reader) for reader in readers)
            assert refusal(http.get(path)) == (429, "too-many-streams")
        wait_until(lambda: _is_open(http, path), "streams that were left are counted on")


def _is_open(http: httpx.Client, path: str) -> bool:
    with http.stream("GET", path) as answer:
        return answer.status_code == 200


def test_without_tokens_only_this_machine_by_its_own_name_is_answered(
    night: SyntheticRun,
) -> None:
    with ApiServer(night.folder, {"auth": "off"}) as server, server.http(None) as http:
        for host in ("localhost", "127.0.0.1:8000", "[::1]:80"):
            assert http.get("/v1/status", headers={"Host": host}).status_code == 200
        for host in ("evil.example", "10.0.0.1", "localhost.evil.example", ""):
            answer = http.get("/v1/status", headers={"Host": host})
            assert refusal(answer) == (403, "host-unknown")
        body = {"action": "lr-factor", "value": 0.5, "reason": "x", "by": "ann"}
        name = http.post("/v1/interventions", json=body).json()["id"]
        known = http.get(f"/v1/interventions/{name}").json()
        assert known["request"]["by"] == "ann via api:anyone"
        assert "whoever reaches 127.0.0.1 can steer the run" in server.log


def test_tls_by_file_is_taken_up_anew_when_it_is_renewed(
    night: SyntheticRun, tmp_path: Path
) -> None:
    cert, key = write_certificate(tmp_path, serial=7)
    with ApiServer(night.folder, {"tls": {"cert": str(cert), "key": str(key)}}) as server:
        assert server.endpoint.url.startswith("https://")
        with server.http(verify=ssl.create_default_context(cafile=str(cert))) as http:
            assert http.get("/v1/status").status_code == 200
        with server.http() as stranger, pytest.raises(httpx.ConnectError):
            stranger.get("/v1/status")
        with server.socket() as bare:
            bare.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert not read_to_end(bare).startswith(b"HTTP/1.1 200")
        write_certificate(tmp_path, serial=8)
        wait_until(lambda: serial_at(server.endpoint.port) == 8, "the old certificate goes on")
        # Half of a new pair is none: the one before goes on.
        cert.write_text("half of it")
        wait_until(lambda: "cannot be used" in server.log, "a broken certificate was not noticed")
        assert serial_at(server.endpoint.port) == 8


def serial_at(port: int) -> int:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), 30.0) as bare,
        context.wrap_socket(bare) as secured,
    ):
        shown = secured.getpeercert(binary_form=True)
    assert shown is not None
    from cryptography.x509 import load_der_x509_certificate

    return load_der_x509_certificate(shown).serial_number
