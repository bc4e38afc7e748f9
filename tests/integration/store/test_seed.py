"""The first revision is the seed's schema: compared object by object with the seed's own text.

``seed.sql`` is that text, unchanged. It needs the extension uuid-ossp, which the embedded
PostgreSQL does not have; so two things are replaced before it is loaded, and nothing else.
"""

from pathlib import Path

import asyncpg
import pytest

from fc_operator.store import migrations

SEED = Path(__file__).with_name("seed.sql")
DIFFERENCES = {
    'CREATE EXTENSION IF NOT EXISTS "uuid-ossp";': "",
    "uuid_generate_v4 ()": "gen_random_uuid()",
}

_PUBLIC = "n.nspname = 'public' AND {}.relname NOT LIKE 'alembic_version%'"
CATALOGUE = {
    "table": f"""
        SELECT c.relname, format('%s %s %s %s', c.relkind, c.relpersistence, c.reloptions, c.relrowsecurity)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'v', 'm', 'S', 'p', 'f') AND {_PUBLIC.format("c")}""",
    "column": f"""
        SELECT format('%s.%s', c.relname, a.attname),
            format('nr %s, %s, not null %s, default %s, identity %s, generated %s, collation %s',
                a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated, a.attcollation)
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'v') AND {_PUBLIC.format("c")}""",
    "constraint": f"""
        SELECT format('%s.%s', c.relname, k.conname), pg_get_constraintdef(k.oid)
        FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE {_PUBLIC.format("c")}""",
    "index": f"""
        SELECT i.relname, pg_get_indexdef(x.indexrelid)
        FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {_PUBLIC.format("c")}""",
    "trigger": f"""
        SELECT format('%s.%s', c.relname, t.tgname), pg_get_triggerdef(t.oid)
        FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE NOT t.tgisinternal AND {_PUBLIC.format("c")}""",
    "function": """
        SELECT p.proname, pg_get_functiondef(p.oid)
        FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'public'""",
    "view": f"""
        SELECT c.relname, pg_get_viewdef(c.oid)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'v' AND {_PUBLIC.format("c")}""",
    "type": """
        SELECT t.typname, format('%s %s', t.typtype, t.typcategory)
        FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
        WHERE n.nspname = 'public' AND t.typname NOT LIKE '%alembic_version%'""",
    "extension": "SELECT extname, '' FROM pg_extension",
    "rule": f"""
        SELECT format('%s.%s', c.relname, r.rulename), pg_get_ruledef(r.oid)
        FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE {_PUBLIC.format("c")}""",
}
SEED_COUNTS = {"table": 23, "column": 208, "view": 3, "trigger": 8, "function": 3}
"""How much the seed holds at least, so that an empty comparison can't pass."""


async def catalogue(url: str) -> dict[str, dict[str, str]]:
    """Every object of the schema with its definition, by kind."""
    connection = await asyncpg.connect(url)
    try:
        return {kind: dict(await connection.fetch(query)) for kind, query in CATALOGUE.items()}
    finally:
        await connection.close()


def seed_text() -> str:
    text = SEED.read_text()
    for theirs, ours in DIFFERENCES.items():
        assert theirs in text
        text = text.replace(theirs, ours)
    return text


@pytest.fixture
async def both(postgres, empty_database_url):
    """The catalogues of the seed's text and of our first revision."""
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute(seed_text())
    await connection.close()
    ours = postgres.create("template0")
    try:
        await migrations.migrate(postgres.url(ours), target="0001")
        yield await catalogue(empty_database_url), await catalogue(postgres.url(ours))
    finally:
        postgres.drop(ours)


async def test_the_first_revision_is_the_seed_object_by_object(both):
    seed, ours = both
    for kind in CATALOGUE:
        assert ours[kind] == seed[kind], kind
    assert {kind: len(seed[kind]) for kind in SEED_COUNTS} == SEED_COUNTS


async def test_the_comparison_sees_a_single_changed_default(both, empty_database_url):
    seed, _ = both
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute("ALTER TABLE jobsets ALTER COLUMN keep_nr SET DEFAULT 4")
    await connection.close()
    changed = await catalogue(empty_database_url)
    assert [kind for kind in CATALOGUE if changed[kind] != seed[kind]] == ["column"]


def test_the_copy_of_the_seed_is_faithful():
    """The seed never changes; its digest is that of the file that the project started from."""
    import hashlib

    digest = hashlib.sha256(SEED.read_bytes()).hexdigest()
    assert digest == "979f79c821106660ec7671e06631d89327f613025dbbd0c04393a716acfb2209"


def test_nothing_but_the_ids_default_differs_in_the_text():
    """The second proof, without a database: statement by statement."""

    def statements(text: str) -> list[str]:
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("--")]
        return "\n".join(lines).split(";")

    first = (migrations.directory() / "sql" / "0001_seed.sql").read_text()
    assert statements(first) == statements(seed_text())
