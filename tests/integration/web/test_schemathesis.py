"""The API against its own document, by generated requests: no error of ours, none undocumented."""

import asyncio
import threading

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import checks

from fc_operator.clients.objects import ObjectStore
from fc_operator.clients.secrets import DirectorySecrets
from fc_operator.kit.ciphers import Cipher
from fc_operator.model.statuses import Role
from fc_operator.operations import keys
from fc_operator.settings import Settings, WebSettings
from fc_operator.store.database import Database
from fc_operator.store.listener import Listener
from fc_operator.web.server import WebService


@pytest.fixture
def served(database_url, tmp_path):
    """A service on a loop of its own thread: schemathesis speaks HTTP without asyncio."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def call(work):
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    async def start():
        database = await Database.open(database_url, size=4)
        listener = Listener(database)
        service = WebService(
            database=database,
            listener=listener,
            objects=ObjectStore.open(tmp_path / "objects"),
            secrets=DirectorySecrets(tmp_path),
            cipher=Cipher(b"k" * 32),
            settings=Settings(web=WebSettings(port=0)),
        )
        await listener.start()
        await service.start()
        made = await keys.create(database, "fuzz", Role.ADMIN)
        return database, listener, service, made.key

    database, listener, service, key = call(start())
    yield service.url, key
    call(service.stop())
    call(listener.stop())
    call(database.close())
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_generated_requests_are_never_our_error(served):
    url, key = served
    schema = schemathesis.openapi.from_url(f"{url}/api/v1/openapi.json", wait_for_schema=5)
    checks.load_all_checks()
    chosen = [
        checks.not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]
    headers = {"Authorization": f"Bearer {key}"}
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if "stream" in operation.path or operation.path == "/ready":
            continue

        @settings(
            max_examples=6,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def attempt(case):
            response = case.call(headers=headers, base_url=url, allow_redirects=False)
            case.validate_response(response, checks=chosen)

        attempt()
        tried += 1
    assert tried > 60
