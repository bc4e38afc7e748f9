"""Runs sql/0005_builders.sql."""

from fc_operator.store.migrations import run_sql_file

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    run_sql_file("0005_builders.sql")
