"""A binary cache served over HTTP, a private Nix store that uploads, another that downloads."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import stat
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import aiohttp
import pytest

from fc_operator.access import tasks
from fc_operator.cache import hashes, signing
from fc_operator.clients.objects import ObjectStore
from fc_operator.clients.registrations import nix32
from fc_operator.clients.secrets import DirectorySecrets
from fc_operator.kit.ciphers import Cipher, Ed25519Key
from fc_operator.kit.compression import Compressor
from fc_operator.model.ids import TaskId
from fc_operator.model.statuses import Role
from fc_operator.operations import keys
from fc_operator.operations.cache import BinaryCache
from fc_operator.settings import CacheSettings, NixSettings, Settings, StateSettings, WebSettings
from fc_operator.store.listener import Listener
from fc_operator.web.server import WebService


def load(name: str, path: Path):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


_shared = load(
    "executors_conftest", Path(__file__).parents[2] / "conformance" / "executors" / "conftest.py"
)
NixHome, nix = _shared.NixHome, _shared.nix

KEY = signing.SigningKey("test-1", Ed25519Key(b"1" * 32))
NEXT_KEY = signing.SigningKey("test-2", Ed25519Key(b"2" * 32))
OUTSIDE_KEY = signing.SigningKey("upstream-1", Ed25519Key(b"3" * 32))


class Reader(NixHome):
    """A second machine: the same store folder, seen through a store of its own.

    Its files lie elsewhere, so nothing can come from the first but through the cache.
    """

    def __init__(self, home: NixHome, folder: Path) -> None:
        self.dir = folder
        self.store_dir = home.store_dir
        self.root = folder / "root"
        conf = folder / "conf"
        conf.mkdir(parents=True)
        (conf / "nix.conf").write_text("sandbox = false\nsubstituters =\n")
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "NIX_STORE_DIR": str(home.store_dir),
            "NIX_STATE_DIR": str(home.dir / "var"),
            "NIX_LOG_DIR": str(home.dir / "log"),
            "NIX_CONF_DIR": str(conf),
        }

    @property
    def store(self) -> str:
        return f"local?real={self.root}&state={self.dir / 'var'}"

    def real(self, path: str) -> Path:
        """Where the files of a path of this machine really are."""
        return self.root / Path(path).name

    def close(self) -> None:
        for folder, _, _ in os.walk(self.dir):
            Path(folder).chmod(stat.S_IRWXU)


class Served:
    """The cache and ways to talk to it."""

    def __init__(self, service, session, cache, folder, nix):
        self.service, self.session, self.database = service, session, service.context.database
        self.objects = service.context.objects
        self.cache, self.folder, self.nix = cache, folder, nix
        self.url = service.url
        self.cache_url = f"{service.url}/cache"

    async def sql(self, text, *values):
        async with self.database.session() as connection:
            return await connection.fetch(text, *values)

    async def one(self, text, *values):
        rows = await self.sql(text, *values)
        return rows[0][0] if rows else None

    async def key(self, role=Role.ADMIN, **more):
        return (await keys.create(self.database, f"test-{role}", role, **more)).key

    def netrc(self, password: str, user: str = "fc") -> Path:
        file = self.folder / f"netrc-{uuid4().hex}"
        file.write_text(f"machine 127.0.0.1 login {user} password {password}\n")
        file.chmod(0o600)
        return file

    async def nix_run(self, home, *argv, password=None, check=True, **options):
        """Run a command of Nix; returns (exit code, stdout, stderr)."""
        words = [*argv]
        options = {"narinfo-cache-negative-ttl": "0", "narinfo-cache-positive-ttl": "0"} | options
        if password:
            options["netrc-file"] = str(self.netrc(password))
        if argv[0] == "nix":
            options.setdefault("experimental-features", "nix-command")
        for name, value in options.items():
            words += ["--option", name, value]
        process = await asyncio.create_subprocess_exec(
            *words,
            env=home.env,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        result = process.returncode, out.decode(), err.decode()
        if check:
            assert process.returncode == 0, result
        return result

    async def request(self, method, name, *, data=None, token=None, status=200, **headers):
        """One request below /cache; returns (body, headers)."""
        if token:
            headers["Authorization"] = f"Bearer {token}"
        async with self.session.request(
            method, f"{self.cache_url}/{name}", data=data, headers=headers
        ) as answer:
            body = await answer.read()
            assert answer.status == status, (method, name, answer.status, body)
            return body, answer.headers

    # Rows ---------------------------------------------------------------------------------------

    async def project(self, name="demo", **more):
        row = {"name": name, "repository_url": "https://example.org/x.git"} | more
        marks = ", ".join(f"${n}" for n in range(1, len(row) + 1))
        return await self.one(
            f"INSERT INTO projects ({', '.join(row)}) VALUES ({marks}) RETURNING id", *row.values()
        )

    async def jobset(self, project_id, name="main"):
        return await self.one(
            "INSERT INTO jobsets (project_id, name, nix_expression) VALUES ($1, $2, 'r.nix')"
            " RETURNING id",
            project_id,
            name,
        )

    async def task(self, project_id, kind="steps", drvs=()):
        """A live task and its token; of kind steps it holds the given derivations."""
        jobset = await self.jobset(project_id, f"j{uuid4().hex}")
        evaluation = None
        if kind == "evaluation":
            evaluation = await self.one(
                "INSERT INTO evaluations (jobset_id, commit_hash, status) VALUES ($1, $2, 'running')"
                " RETURNING id",
                jobset,
                "a" * 40,
            )
        task_id = await self.one(
            "INSERT INTO tasks (kind, evaluation_id, owner, expires_at)"
            " VALUES ($1, $2, 'test', now() + interval '1 hour') RETURNING id",
            kind,
            evaluation,
        )
        token = tasks.make(TaskId(task_id))
        await self.sql(
            "UPDATE tasks SET work_token_hash = $2 WHERE id = $1",
            task_id,
            hashlib.sha256(token.secret).digest(),
        )
        for drv, outputs in drvs:
            await self.step(jobset, drv, outputs, task_id)
        return task_id, token.text

    async def step(self, jobset, drv, outputs, task_id=None):
        class_id = await self.one(
            "INSERT INTO step_classes (system) VALUES ('x86_64-linux')"
            " ON CONFLICT (system, features) DO UPDATE SET system = excluded.system RETURNING id"
        )
        step = await self.one(
            "INSERT INTO steps (drv_path, name, class_id, jobset_id, attempt)"
            " VALUES ($1, 'x', $2, $3, 1) RETURNING id",
            drv,
            class_id,
            jobset,
        )
        for name, path in outputs.items():
            await self.sql("INSERT INTO step_outputs VALUES ($1, $2, $3)", step, name, path)
        if task_id:
            await self.sql(
                "INSERT INTO leases (step_id, attempt, task_id, owner, expires_at)"
                " VALUES ($1, 1, $2, 'test', now() + interval '1 hour')",
                step,
                task_id,
            )
        return step


@pytest.fixture
async def serve(database, tmp_path, nix):
    """A function that serves a cache on ``database``."""

    @asynccontextmanager
    async def start(*, keys=(KEY,), cache_settings=None, trusted=(), **web):
        settings = Settings(
            web=replace(WebSettings(port=0), **web),
            state=StateSettings(dir=tmp_path),
            nix=NixSettings(store_dir=str(nix.store_dir)),
            cache=cache_settings or CacheSettings(),
        )
        objects = ObjectStore.open(tmp_path / "objects")
        cache = BinaryCache(
            database=database,
            objects=objects,
            settings=settings.cache,
            store_dir=str(nix.store_dir),
            keys=keys,
            trusted=signing.TrustedKeys(trusted),
            local_secret=b"secret of the tests",
        )
        listener = Listener(database)
        service = WebService(
            database=database,
            listener=listener,
            objects=objects,
            secrets=DirectorySecrets(tmp_path / "secrets"),
            cipher=Cipher(b"k" * 32),
            settings=settings,
            cache=cache,
        )
        await listener.start()
        await service.start()
        try:
            async with aiohttp.ClientSession() as session:
                yield Served(service, session, cache, tmp_path, nix)
        finally:
            await service.stop()
            await listener.stop()
            cache.close()

    return start


@pytest.fixture
async def served(serve):
    """The cache as `fc up --cache` has it: on loopback, reads open."""
    async with serve() as served:
        yield served


@pytest.fixture
def machine(nix, tmp_path):
    """Another machine."""
    reader = Reader(nix, tmp_path / "machine")
    yield reader
    reader.close()


# NARs by hand -----------------------------------------------------------------------------------


def text(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data + bytes(-len(data) % 8)


def texts(*words: bytes) -> bytes:
    return b"".join(map(text, words))


def file_nar(content: bytes) -> bytes:
    return texts(b"nix-archive-1", b"(", b"type", b"regular", b"contents", content, b")")


def zstd(data: bytes) -> bytes:
    compressor = Compressor()
    return compressor.add(data) + compressor.finish()


class Upload:
    """A NAR and its narinfo, of which each line may be falsified."""

    def __init__(self, store_dir, name, nar, *, hash_part=None, **lines):
        self.nar, self.file = nar, zstd(nar)
        self.file_hash = nix32(hashlib.sha256(self.file).digest())
        self.hash_part = hash_part or nix32(hashlib.sha256(name.encode()).digest()[:20])
        self.path = f"{store_dir}/{self.hash_part}-{name}"
        self.nar_name = f"nar/{self.file_hash}.nar.zst"
        self.lines = {
            "StorePath": self.path,
            "URL": self.nar_name,
            "Compression": "zstd",
            "FileHash": f"sha256:{self.file_hash}",
            "FileSize": str(len(self.file)),
            "NarHash": hashes.sha256_text(hashlib.sha256(nar).digest()),
            "NarSize": str(len(nar)),
            "References": "",
        } | lines

    @property
    def narinfo(self) -> bytes:
        return "".join(f"{k}: {v}\n" for k, v in self.lines.items() if v is not None).encode()

    async def put(self, served, token, *, status=200):
        await served.request("PUT", self.nar_name, data=self.file, token=token)
        return await served.request(
            "PUT", f"{self.hash_part}.narinfo", data=self.narinfo, token=token, status=status
        )


@pytest.fixture
def tools():
    """What tests forge with."""
    return sys.modules[__name__]
