#!/bin/sh
# Run once, on an empty volume: a role and a database of its own for each app.
set -eu
for name in mlflow airflow prediction; do
  psql -v ON_ERROR_STOP=1 --username postgres -v name="$name" -v password="$(cat "/run/passwords/$name")" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
