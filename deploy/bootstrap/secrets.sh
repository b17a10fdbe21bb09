#!/usr/bin/env bash
# Make every Secret of a cluster, with new random values, each encrypted for the holder of one age key.
# Nothing is written in plain text. Usage: secrets.sh local|production RECIPIENT [FOLDER]
set -euo pipefail
[ $# = 2 ] || [ $# = 3 ] || { echo "Usage: secrets.sh local|production RECIPIENT [FOLDER]" >&2; exit 2; }
root=$(cd "$(dirname "$0")/../.." && pwd)
cluster=$1 recipient=$2 folder=${3:-$root/deploy/infrastructure/$1/secrets}
command -v sops >/dev/null || { echo "sops is not installed: deploy/README.md says what is needed" >&2; exit 1; }
random() { head -c "${1:-24}" /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }

seal() { # namespace name key value [key value ...] -> FOLDER/namespace-name.yaml
  local namespace=$1 name=$2
  shift 2
  {
    printf 'apiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  namespace: %s\ntype: Opaque\nstringData:\n' "$name" "$namespace"
    while [ $# -gt 0 ]; do printf "  %s: '%s'\n" "$1" "$2"; shift 2; done
  } | sops --config "$root/.sops.yaml" encrypt --age "$recipient" --output "$folder/$namespace-$name.yaml" \
        --filename-override "$root/deploy/infrastructure/$cluster/secrets/$namespace-$name.yaml"
}

case $cluster in
  local) access=$(random 10) secret=$(random) ;;
  production)
    for name in AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; do
      [ -n "${!name:-}" ] || { echo "Set $name: the Secrets of production hold the key of its object storage" >&2; exit 1; }
    done
    access=$AWS_ACCESS_KEY_ID secret=$AWS_SECRET_ACCESS_KEY ;;
  *) echo "$cluster is no cluster: local or production" >&2; exit 2 ;;
esac
host=${DATABASE_HOST:-postgres.database.svc.cluster.local}
endpoint=$(sed -n 's/^  S3_ENDPOINT: //p' "$root/deploy/clusters/$cluster/cluster-vars.yaml")
mlflow=$(random) airflow=$(random) prediction=$(random)
mkdir -p "$folder"

seal database postgres postgres "$(random)" mlflow "$mlflow" airflow "$airflow" prediction "$prediction"
[ "$cluster" = production ] || seal storage store AWS_ACCESS_KEY_ID "$access" AWS_SECRET_ACCESS_KEY "$secret"
seal mlflow store AWS_ACCESS_KEY_ID "$access" AWS_SECRET_ACCESS_KEY "$secret"
seal mlflow mlflow MLFLOW_BACKEND_STORE_URI "postgresql+psycopg://mlflow:$mlflow@$host:5432/mlflow"
seal prediction store AWS_ACCESS_KEY_ID "$access" AWS_SECRET_ACCESS_KEY "$secret"
if [ "$cluster" = production ]; then
  seal prediction prediction HOUSE_DATABASE_URL "postgresql://prediction:$prediction@$host:5432/prediction" HOUSE_API_KEYS "$(random 16)"
else
  seal prediction prediction HOUSE_DATABASE_URL "postgresql://prediction:$prediction@$host:5432/prediction"
fi
seal airflow stage AWS_ACCESS_KEY_ID "$access" AWS_SECRET_ACCESS_KEY "$secret" \
  HOUSEMLOPS_SERVER_DATABASE_URL "postgresql://prediction:$prediction@$host:5432/prediction"
seal airflow airflow connection "postgresql+psycopg2://airflow:$airflow@$host:5432/airflow" \
  fernet-key "$(head -c 32 /dev/urandom | base64 | tr '+/' '-_')" api-secret-key "$(random 32)" jwt-secret "$(random 64)" admin-password "$(random 12)" \
  store-connection "{\"conn_type\": \"aws\", \"login\": \"$access\", \"password\": \"$secret\", \"extra\": {\"endpoint_url\": \"$endpoint\"}}"
