"What alembic runs: the migrations, over the connection and in the transaction that `PredictionLog.migrate` hands it"

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
