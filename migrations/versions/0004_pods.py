"""Runs sql/0004_pods.sql."""

from fc_operator.store.migrations import run_sql_file

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    run_sql_file("0004_pods.sql")
