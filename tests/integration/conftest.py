"""A real git host on loopback: `git http-backend` behind a small HTTP server."""

from __future__ import annotations

import base64
import http.server
import os
import subprocess
import threading
from pathlib import Path

import git
import pytest

_AUTHOR = git.Actor("Ada Author", "ada@example.org")


class GitRepository:
    """A repository that tests write to; ``url`` is where it is served."""

    def __init__(self, path: Path, url: str) -> None:
        self.repo = git.Repo.init(path, initial_branch="main", expand_vars=False)
        self.path = path
        self.url = url

    def commit(self, files: dict[str, str | bytes | None], message: str = "change") -> str:
        """Write (or, for None, remove) files and commit them; returns the commit id."""
        for name, content in files.items():
            target = self.path / name
            if content is None:
                target.unlink()
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.repo.git.add(all=True)
        return self.repo.index.commit(message, author=_AUTHOR, committer=_AUTHOR).hexsha

    def git(self, *argv: str) -> str:
        """Any git command in the repository."""
        return self.repo.git.execute(["git", *argv])

    def close(self) -> None:
        self.repo.close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    host: GitHost

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        self.host.requests.append((self.command, self.path, dict(self.headers)))
        length = int(self.headers.get("Content-Length") or 0)
        body = self._chunked() if "chunked" in self.headers.get("Transfer-Encoding", "") else b""
        body = body or self.rfile.read(length)
        if self.host.status:
            self._plain(self.host.status, self.host.headers)
        elif self.host.basic and self.headers.get("Authorization") != self.host.basic:
            self._plain(401, {"WWW-Authenticate": 'Basic realm="git"'})
        else:
            self._backend(body)

    def _chunked(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().strip(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _plain(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _backend(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        env = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.host.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "2",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "GIT_CONFIG_KEY_1": "uploadpack.allowAnySHA1InWant",
            "GIT_CONFIG_VALUE_1": "true",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_ADDR": "127.0.0.1",
        }
        done = subprocess.run(
            ["git", "http-backend"], input=body, env=env, capture_output=True, check=False
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class GitHost:
    """Serves the repositories of one folder. ``requests`` holds what it was asked.

    ``basic`` asks for a password, ``status`` (with ``headers``) answers all with that status.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.basic = ""
        self.status = 0
        self.headers: dict[str, str] = {}
        self._repositories: list[GitRepository] = []
        handler = type("Handler", (_Handler,), {"host": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    @property
    def listed(self) -> str:
        """What ``git.allowed_hosts`` has to hold."""
        return f"127.0.0.1:{self.port}"

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}/.git"

    def make(self, name: str) -> GitRepository:
        repository = GitRepository(self.folder / name, self.url(name))
        self._repositories.append(repository)
        return repository

    def need_password(self, username: str, password: str) -> None:
        pair = base64.b64encode(f"{username}:{password}".encode()).decode()
        self.basic = f"Basic {pair}"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join(10)
        self.server.server_close()
        for repository in self._repositories:
            repository.close()


@pytest.fixture
def git_host(tmp_path):
    """An empty git host of this test alone."""
    folder = tmp_path / "git-host"
    folder.mkdir()
    host = GitHost(folder)
    yield host
    host.close()
