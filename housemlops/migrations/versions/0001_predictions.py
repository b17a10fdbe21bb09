"The log: one row a prediction. What was asked is JSON, so another data contract needs no migration."

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision, down_revision = "0001", None

UTC = sa.Text().with_variant(
    sa.DateTime(timezone=True), "postgresql"
)  # SQLite: 2026-11-22 09:30:00.000000+00:00
JSON = sa.Text().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "predictions",
        sa.Column("id", sa.Text, primary_key=True, nullable=False),
        sa.Column("time", UTC, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("model_sha256", sa.Text, nullable=False),
        sa.Column("data_md5", sa.Text),
        sa.Column("route", sa.Text, nullable=False),
        sa.Column("price", sa.Double, nullable=False),
        sa.Column("low", sa.Double, nullable=False),
        sa.Column("high", sa.Double, nullable=False),
        sa.Column("level", sa.Double, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("warnings", JSON, nullable=False),
        sa.Column("inputs", JSON, nullable=False),
        sa.CheckConstraint("json_valid(inputs)").ddl_if(dialect="sqlite"),
    )
    op.create_index("predictions_time", "predictions", ["time", "id"])
