"""Read routes against rows of a real database."""


async def test_an_empty_installation_answers(web):
    assert await web.get("/api/v1/projects") == {"items": [], "next": None}
    assert await web.get("/api/v1/builds") == {"items": [], "next": None}
    assert await web.get("/api/v1/evaluations") == {"items": [], "next": None}
    assert (await web.get("/health"))["status"] == "ok"
    assert (await web.get("/ready", status=503))["status"] == "unavailable"
    await web.get("/api/v1/nothing", status=404)
