"""Names of earlier lives in a file."""

from fc_operator.kit.lives import Lives


async def test_a_life_that_ended_without_a_word_is_remembered_by_the_next(tmp_path):
    file = tmp_path / "owners" / "checks"
    assert await Lives(file).earlier("one") == []
    await Lives(file).begin("one")
    second = Lives(file)
    assert await second.earlier("two") == ["one"]
    await second.begin("two")
    assert await second.earlier("two") == []
    await second.end()
    assert await Lives(file).earlier("three") == []


async def test_without_a_file_nothing_is_remembered():
    lives = Lives(None)
    await lives.begin("one")
    assert await lives.earlier("two") == []
    await lives.end()
