"""Runs sql/0001_seed.sql."""

from fc_operator.store.migrations import run_sql_file

revision = "0001"
down_revision = None


def upgrade() -> None:
    run_sql_file("0001_seed.sql")
