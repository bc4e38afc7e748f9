"""The example file shows every setting, explains it, and says its real default."""

from dataclasses import fields

from fc_operator import settings
from tests.house import example_settings


def test_every_setting_is_explained():
    words = example_settings.explanations()
    for group in fields(settings.Settings):
        content = getattr(settings.Settings(), group.name)
        for each in fields(content):
            assert words[type(content).__name__].get(each.name), f"{group.name}.{each.name}"


def test_the_file_is_what_the_settings_say():
    assert example_settings.FILE.read_text() == example_settings.render(), (
        "run: python -m tests.house.example_settings"
    )


def test_the_file_changes_nothing():
    assert settings.load(file=example_settings.FILE) == settings.Settings()
