"""The binary cache beside nginx: narinfos per second, and NARs in MB per second, of the same files.

One run on one machine over loopback: nginx serves from a folder the very narinfos and NARs that our
server answers with, byte for byte, as everybody who keeps a static cache has it. Both have one
process and get the same load from wrk, one after the other in turns; each ratio is the median of
the turns. Ours also asks who may read each path. Needs ``apt install nginx-light wrk``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import hashlib
import json
import os
import platform
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import asyncpg

from fc_operator.cache import hashes, signing
from fc_operator.clients.objects import ObjectStore
from fc_operator.clients.registrations import nix32
from fc_operator.clients.secrets import DirectorySecrets
from fc_operator.kit import logs
from fc_operator.kit.ciphers import Cipher, Ed25519Key
from fc_operator.operations import cache as operations
from fc_operator.operations.cache import BinaryCache
from fc_operator.settings import Settings, StateSettings, WebSettings
from fc_operator.store import migrations
from fc_operator.store.database import Database
from fc_operator.store.embedded import EmbeddedPostgres
from fc_operator.store.listener import Listener
from fc_operator.web.server import WebService

TURNS = 3
CONNECTIONS = 16
HOT = 200
NAR_CONNECTIONS = 4

_LUA = """
local paths = {}
for line in io.lines("%s") do paths[#paths + 1] = line end
local at = 0
request = function()
  at = at %% #paths + 1
  return wrk.format("GET", paths[at])
end
"""
_NGINX = """
daemon off; worker_processes 1; worker_rlimit_nofile 65536; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
  open_file_cache max=5000 inactive=60s;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  types {{ text/x-nix-narinfo narinfo; application/x-nix-nar zst; }}
  server {{ listen 127.0.0.1:{port}; root {folder}/www; }}
}}
"""


def digest(*words: Any) -> bytes:
    return hashlib.sha256("/".join(map(str, words)).encode()).digest()


async def fill(url: str, paths: int, objects: Path, nar_mib: int) -> tuple[list[str], str]:
    """Rows of ``paths`` small paths of a public project, and one with a large NAR; hash parts."""
    await migrations.migrate(url)
    connection = await asyncpg.connect(url)
    project = uuid.uuid4()
    await connection.execute(
        "INSERT INTO projects (id, name, repository_url) VALUES ($1, 'demo', 'https://e.org/x')",
        project,
    )
    parts = [nix32(digest("path", n)[:20]) for n in range(paths + 1)]
    file = objects / "cache" / "nar"
    file.mkdir(parents=True)
    data = os.urandom(1024 * 1024) * nar_mib
    large = nix32(hashlib.sha256(data).digest())
    (file / f"{large}.nar.zst").write_bytes(data)

    def row(n: int) -> tuple[Any, ...]:
        is_large = n == paths
        file_hash = large if is_large else nix32(digest("file", n))
        references = [f"{parts[max(0, n - k)]}-needed-{k}" for k in range(1, n % 8)]
        return (
            parts[n], f"/nix/store/{parts[n]}-package-{n}-1.0", hashes.sha256_text(digest("nar", n)),
            100_000 + n, file_hash, len(data) if is_large else 30_000,
            f"cache/nar/{file_hash}.nar.zst", references, f"{parts[n]}-package-{n}-1.0.drv", "bench",
        )  # fmt: skip

    await connection.copy_records_to_table(
        "cache_paths",
        records=[row(n) for n in range(paths + 1)],
        columns=["hash_part", "store_path", "nar_hash", "nar_size", "file_hash", "file_size",
                 "object_key", "reference_names", "deriver", "uploaded_by"],
    )  # fmt: skip
    await connection.copy_records_to_table(
        "cache_path_projects",
        records=[(part, project) for part in parts],
        columns=["hash_part", "project_id"],
    )
    await connection.execute("VACUUM ANALYZE")
    await connection.close()
    return parts[:-1], large


async def serve(url: str, objects: Path, remembered_s: float) -> None:
    """Our server in a process of its own, until it is stopped; prints its address."""
    logs.configure(level="error")
    operations._REMEMBERED_S = remembered_s
    settings = Settings(
        web=WebSettings(port=0, anonymous_read="Always"), state=StateSettings(dir=objects.parent)
    )
    database = await Database.open(url, size=8)
    store = ObjectStore.open(objects)
    cache = BinaryCache(
        database=database,
        objects=store,
        settings=settings.cache,
        store_dir="/nix/store",
        keys=[signing.SigningKey("bench-1", Ed25519Key(b"1" * 32))],
        trusted=signing.TrustedKeys(()),
    )
    web = WebService(
        database=database,
        listener=Listener(database),
        objects=store,
        secrets=DirectorySecrets(objects.parent / "secrets"),
        cipher=Cipher(b"k" * 32),
        settings=settings,
        cache=cache,
    )
    await web.start()
    print(web.url, flush=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await web.stop()
    await database.close()


@contextlib.contextmanager
def our_server(url: str, objects: Path, remembered_s: float) -> Iterator[str]:
    argv = [sys.executable, __file__, "--serve", url, str(objects), str(remembered_s)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@contextlib.contextmanager
def nginx(folder: Path, port: int) -> Iterator[str]:
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=port))
    if os.geteuid() == 0:
        config.write_text("user root;\n" + config.read_text())
    with subprocess.Popen(["nginx", "-p", str(folder), "-c", str(config)]) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            deadline_s = time.monotonic() + 10
            while True:
                try:
                    urllib.request.urlopen(f"{address}/cache/nix-cache-info", timeout=2).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline_s:
                        raise
                    time.sleep(0.05)
            yield address
        finally:
            process.send_signal(signal.SIGQUIT)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def copy_narinfos(base: str, parts: list[str], www: Path) -> None:
    """What our server says of each path, as files."""
    import http.client

    connection = http.client.HTTPConnection(base.removeprefix("http://"))
    for name in ("nix-cache-info", *(f"{part}.narinfo" for part in parts)):
        connection.request("GET", f"/cache/{name}")
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, (name, body)
        (www / name).write_bytes(body)
    connection.close()


def load(address: str, paths: list[str], folder: Path, *, connections: int, seconds: int) -> dict:
    """What wrk measures: requests per second, bytes per second, the 99th percentile."""
    listed = folder / "paths.txt"
    listed.write_text("".join(f"{path}\n" for path in paths))
    script = folder / "paths.lua"
    script.write_text(_LUA % listed)
    argv = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--timeout",
        "60s",
        "--latency",
        "-s",
        str(script),
        address,
    ]
    out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in out, out
    assert "Socket errors" not in out, out
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1])
    size, unit = re.search(r"Transfer/sec:\s+([\d.]+)(\wB)", out).groups()
    tail, tail_unit = re.search(r"99%\s+([\d.]+)(\w+)", out).groups()
    return {
        "per_s": rate,
        "mb_s": float(size) * {"KB": 1 / 1024, "MB": 1, "GB": 1024}[unit] * 1.048576,
        "p99_ms": float(tail) * {"us": 0.001, "ms": 1, "s": 1000}[tail_unit],
    }


def turns(ours: str, theirs: str, paths: list[str], folder: Path, **more: Any) -> tuple[dict, dict]:
    """Medians of both, taken in turns."""
    found: dict[str, list[dict]] = {ours: [], theirs: []}
    for address in (ours, theirs):
        load(address, paths, folder, **{**more, "seconds": 1})
    for _ in range(TURNS):
        for address, measures in found.items():
            measures.append(load(address, paths, folder, **more))
    return tuple(  # type: ignore[return-value]
        {key: statistics.median(each[key] for each in measures) for key in measures[0]}
        for measures in found.values()
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paths", type=int, default=20_000)
    parser.add_argument("--nar-mib", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        import uvloop

        url, objects, remembered = args.serve
        uvloop.run(serve(url, Path(objects), float(remembered)))
        return 0
    missing = [name for name in ("nginx", "wrk") if shutil.which(name) is None]
    if missing:
        print(f"not measured: {' and '.join(missing)} missing (apt install nginx-light wrk)")
        return 0
    return asyncio.run(measure(args))


async def measure(args: argparse.Namespace) -> int:
    logs.configure(level="error")
    dice = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix="fc-bench-cache-"))
    folder.chmod(0o755)
    postgres = EmbeddedPostgres(folder / "state")
    (folder / "state").mkdir(mode=0o755)
    try:
        await postgres.start()
        objects = folder / "objects"
        parts, large = await fill(postgres.url, args.paths, objects, args.nar_mib)
        www = folder / "www" / "cache"
        (www / "nar").mkdir(parents=True)
        name = f"{large}.nar.zst"
        (www / "nar" / name).hardlink_to(objects / "cache" / "nar" / name)
        print(
            f"# {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
            f"Python {platform.python_version()}, sanic {version('sanic')}, one process each, "
            f"{args.paths} paths, seed {args.seed}"
        )
        results = await asyncio.to_thread(
            functools.partial(compare, www=www, parts=parts, nar_name=name, dice=dice, args=args),
            postgres.url,
            objects,
            folder,
        )
        print(json.dumps(results))
        return 0
    finally:
        await postgres.stop()
        shutil.rmtree(folder)


def compare(url, objects, folder, *, www, parts, nar_name, dice, args) -> dict[str, float]:
    port = free_port()
    narinfos = [f"/cache/{part}.narinfo" for part in parts]
    dice.shuffle(narinfos)
    results: dict[str, float] = {}
    with our_server(url, objects, 0.0) as ours:
        copy_narinfos(ours, parts, www)
        with nginx(folder, port) as theirs:
            mine, other = turns(ours, theirs, narinfos, folder, connections=CONNECTIONS, seconds=args.seconds)  # fmt: skip
            tell("narinfo, each asked of PostgreSQL", mine, other, "per_s", results)
    with our_server(url, objects, 5.0) as ours, nginx(folder, port) as theirs:
        mine, other = turns(ours, theirs, narinfos[:HOT], folder, connections=CONNECTIONS, seconds=args.seconds)  # fmt: skip
        tell(f"narinfo, {HOT} asked again and again", mine, other, "per_s", results)
        nars = [f"/cache/nar/{nar_name}"]
        mine, other = turns(ours, theirs, nars, folder, connections=NAR_CONNECTIONS, seconds=args.seconds)  # fmt: skip
        tell(f"NAR of {args.nar_mib} MiB", mine, other, "mb_s", results)
    return results


def tell(what: str, mine: dict, other: dict, key: str, results: dict[str, float]) -> None:
    unit = {"per_s": "/s", "mb_s": " MB/s"}[key]
    ratio = mine[key] / other[key]
    results[what] = round(ratio, 3)
    print(
        f"{what}: ours {mine[key]:,.0f}{unit} (p99 {mine['p99_ms']:.1f} ms), "
        f"nginx {other[key]:,.0f}{unit} (p99 {other['p99_ms']:.1f} ms), ratio {ratio:.3f}"
    )


if __name__ == "__main__":
    sys.exit(main())
