"""Pages: rendered from real rows, escaped everywhere, within the queries and headers they may have."""

import re

import pytest

PAGES = (
    "/", "/projects/demo", "/projects/demo/main", "/evaluations/2", "/evaluations/2?status=failed",
    "/builds/2", "/builds/3", "/builds/4", "/builds/5", "/builds/6", "/builds/7",
    "/job/demo/main/hello", "/queue", "/builders", "/sources", "/sources/team", "/api",
)  # fmt: skip
XSS = (
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'-alert(1)-'", "{{7*7}}",
    "</title><svg/onload=alert(1)>", "javascript:alert(1)", "</pre><script>x</script>",
)  # fmt: skip


async def html(web, path, status=200):
    async with web.session.get(web.url + path, headers={"Accept": "text/html"}) as answer:
        text = await answer.text()
        assert answer.status == status, (path, text)
        assert answer.content_type == "text/html", path
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        return text


async def test_every_page_renders(web, world):
    for path in PAGES:
        text = await html(web, path)
        assert "</html>" in text
        # Neither inline script nor style, and nothing of another host.
        assert not re.search(r"<script(?![^>]*src=\"/static/)", text), path
        assert not re.search(r"\son\w+=|\sstyle=", text), path
        assert not re.search(r"(src|href)=\"(https?:)?//(?!e\.org)", text), path


async def test_every_link_of_every_page_leads_somewhere(web, world):
    seen = set()
    for path in PAGES:
        for link in re.findall(r'href="(/[^"#]*)"', await html(web, path)):
            seen.add(link.replace("&amp;", "&"))
    for link in seen:
        async with web.session.get(web.url + link, headers={"Accept": "text/html"}) as answer:
            # The product of the seeded world is in no store.
            assert answer.status in {200, 304} or "/products/" in link, link


async def test_a_job_may_have_slashes_and_quotes_in_its_name(web, world):
    await world.sql("UPDATE builds SET job_name = $1 WHERE job_name = 'hello'", 'a/b?c#d%2F "e"')
    links = re.findall(r'href="(/job/[^"]*)"', await html(web, "/builds/2"))
    assert links
    for link in links:
        text = await html(web, link)
        assert "a/b?c#d%2F &#34;e&#34;" in text


async def test_a_build_with_thousands_of_products_and_metrics_stays_a_page(web, world):
    build = (await world.sql("SELECT id FROM builds WHERE number = 2"))[0][0]
    await world.sql(
        "INSERT INTO build_products (build_id, nr, name, path)"
        " SELECT $1, n, 'x', '/x' FROM generate_series(100, 3099) n",
        build,
    )
    await world.sql(
        "INSERT INTO build_metrics (build_id, metric_name, metric_value)"
        " SELECT $1, 'm' || n, n FROM generate_series(1, 3000) n",
        build,
    )
    text = await html(web, "/builds/2")
    assert len(text) < 100_000
    assert len(re.findall(r"[0-9]+ more</a>", text)) == 2


async def test_errors_are_pages_for_browsers_and_problems_for_programs(web, world):
    assert "no project nobody" in await html(web, "/projects/nobody", 404)
    await html(web, "/no/such/page/at/all", 404)
    await html(web, "/queue?x=1", 400)
    problem = await web.get("/projects/nobody", status=404)
    assert problem["status"] == 404


@pytest.mark.parametrize("payload", XSS)
async def test_cve_class_stored_xss(web, world, payload):
    """S02: payloads in every text that a manifest, a build or Nix can write."""
    await world.sql(
        "UPDATE projects SET description = $1, display_name = $1, homepage = $1, owner = $1",
        payload,
    )
    await world.sql("UPDATE jobsets SET description = $1, last_error = $1, branch = $1", payload)
    await world.sql("UPDATE evaluations SET subject = $1, author = $1, error_message = $1", payload)
    await world.sql("UPDATE evaluation_errors SET message = $1, job_name = $1", payload)
    await world.sql(
        "UPDATE builds SET description = $1, error_message = $1, nix_name = $1, release_name = $1,"
        " homepage = $1, license = $1, maintainers = $1, status_reason = $1, warnings = ARRAY[$1],"
        " system = $1, kept_by = $1, keep = true, outputs = jsonb_build_object($1::text, $1::text)",
        payload,
    )
    await world.sql("UPDATE builds SET job_name = $1 WHERE job_name = 'hello'", payload)
    await world.sql("UPDATE build_products SET name = $1, type = $1, subtype = $1", payload)
    await world.sql("UPDATE steps SET error_message = $1, name = $1", payload)
    await world.sql("UPDATE jobset_inputs SET value = $1, name = $1", payload)
    await world.sql("UPDATE remote_builders SET last_error = $1, consecutive_failures = 1", payload)
    await world.sql("UPDATE config_repositories SET url = $1, path = $1", payload)
    await world.sql("UPDATE managed_resources SET path = $1", payload)
    await world.sql("UPDATE log_chunks SET data = convert_to($1, 'UTF8')", payload)
    await world.sql(
        "UPDATE config_repositories SET conditions = jsonb_build_array(jsonb_build_object("
        "'type', 'Ready', 'status', 'False', 'reason', $1::text, 'message', $1::text))", payload,
    )  # fmt: skip
    await world.add(
        "source_problems", source_kind="ConfigRepository", source_name="team", nr=1,
        problem={"path": payload, "line": 1, "field": payload, "message": payload, "hint": payload},
    )  # fmt: skip
    for path in PAGES:
        text = await html(web, path.replace("hello", "bad"))
        assert "<script>" not in text, path
        assert "<img src=x" not in text, path
        assert "<svg/onload" not in text, path
        assert 'href="javascript:' not in text, path
        assert "49" not in payload
    async with web.session.get(f"{web.url}/job/demo/main/%3Cscript%3E/badge") as answer:
        assert b"<script>" not in await answer.read()


async def test_terminal_escapes_never_reach_a_page(web, world):
    await world.sql(
        "UPDATE log_chunks SET data = $1",
        b"\x1b[31mred\x1b[0m \x1b]0;title\x07done\rover\n\x1b]52;c;ZXZpbA==\x1b\\\x9b31m\xe2\x80\xaeflip\n",
    )
    text = await html(web, "/builds/2")
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "ZXZpbA==" not in text
    assert "over" in text


async def test_an_unfinished_page_looks_again_by_itself(web, world):
    assert 'http-equiv="refresh"' in await html(web, "/evaluations/2")
    assert 'http-equiv="refresh"' not in await html(web, "/evaluations/1")
    running = (await world.sql("SELECT number FROM builds WHERE status = 'running'"))[0][0]
    assert "/static/log.js" in await html(web, f"/builds/{running}")
    assert "/static/log.js" not in await html(web, "/builds/2")


async def test_assets(web):
    for name, kind in (
        ("static/style.css", "text/css"), ("static/log.js", "text/javascript"),
        ("static/icon.svg", "image/svg+xml"), ("robots.txt", "text/plain"),
    ):  # fmt: skip
        async with web.session.get(f"{web.url}/{name}") as answer:
            assert (answer.status, answer.content_type) == (200, kind)
    for name in ("../server.py", "%2e%2e%2fserver.py", "x", "style.css%00"):
        async with web.session.get(f"{web.url}/static/{name}") as answer:
            assert answer.status in {400, 404}
