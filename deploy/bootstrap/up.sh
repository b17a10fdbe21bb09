#!/usr/bin/env bash
# From docker, kind and flux to a local cluster that runs what the last commit says. It may be run again: what is there stays, what has changed is updated.
# Usage: up.sh [--dry-run]      a dry run says every command and does nothing
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"
PATH=$root/.venv/bin:$PATH

if [ -z "$dry" ]; then
  for program in docker kind flux git; do
    command -v "$program" >/dev/null || stop "$program is not installed: deploy/README.md says what is needed"
  done
  docker info >/dev/null 2>&1 || stop "docker does not answer: start it, then try again"
fi
commit=$(git -C "$root" rev-parse HEAD) branch=$(git -C "$root" rev-parse --abbrev-ref HEAD)
[ -z "$(git -C "$root" status --porcelain)" ] || echo "The cluster gets commit ${commit:0:12}; uncommitted changes are left out."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
kubectl=(docker exec -i "$node" kubectl --kubeconfig /etc/kubernetes/admin.conf)
flux=(flux --context "kind-$cluster")

step "This repository's environment; the server of the champion and the site, which go into images"
{ command -v sops && python -c 'import pyrage'; } >/dev/null 2>&1 || run make -C "$root" .venv/.installed
[ -f "$root/var/serve/current/app.py" ] || run make -C "$root" run
[ -f "$root/var/site/index.html" ] || run make -C "$root" docs

step "A registry beside the cluster, for the images and the commit"
there docker inspect "$registry" || run docker run --detach --restart always --publish "127.0.0.1:${address#*:}:5000" --name "$registry" docker.io/library/registry:3.0.0
run docker start "$registry"

step "The cluster"
there docker inspect "$node" || run kind create cluster --name "$cluster" --config "$root/deploy/bootstrap/kind.yaml" --wait 5m
run docker start "$node"
there docker inspect "$registry" --format '{{.NetworkSettings.Networks.kind.NetworkID}}' || run docker network connect kind "$registry"
run docker exec "$node" mkdir -p "/etc/containerd/certs.d/$address"
echo "[host.\"http://$registry:5000\"]" > "$scratch/hosts.toml"
from "$scratch/hosts.toml" docker exec -i "$node" cp /dev/stdin "/etc/containerd/certs.d/$address/hosts.toml"
run "${flux[@]}" install

step "The images, of this commit"
contents() { # folder: a line for each file in it, but those of the model
  [ ! -d "$root/$1" ] || (cd "$root/$1/" && find . -type f ! -path './model/*' ! -path '*/__pycache__/*' -exec cksum {} + | LC_ALL=C sort -k 3)
}
tag=${commit:0:12}-$({ contents var/serve/current; contents var/site; } | cksum | cut -d ' ' -f 1)
mkdir "$scratch/code" "$scratch/artefact"
git -C "$root" archive HEAD | tar -x -C "$scratch/code"
build() { # name, folder that its Dockerfile copies from [option ...]
  run docker build --file "$scratch/code/deploy/images/$1/Dockerfile" --tag "$address/housemlops-$1:$tag" "${@:3}" "$2"
  run docker push "$address/housemlops-$1:$tag"
}
build workbook "$scratch/code" --build-arg "COMMIT=$commit"
build airflow "$scratch/code"
build mlflow "$scratch/code/deploy/images/mlflow"
build server "$root/var/serve/current/"
build site "$root/var/site"

step "The cluster's own key and Secrets, made once"
if [ ! -d "$own/secrets" ]; then
  run mkdir -p "$own"
  run chmod 700 "$own"
  run rm -rf "$own/age.agekey" "$own/draft"
  recipient=$(run python "$root/deploy/bootstrap/key.py" "$own/age.agekey")
  run "$root/deploy/bootstrap/secrets.sh" local "${recipient:-RECIPIENT}" "$own/draft"
  run mv "$own/draft" "$own/secrets"
fi
from "$own/age.agekey" "${kubectl[@]}" create secret generic sops-age --namespace flux-system --from-file age.agekey=/dev/stdin --dry-run=client --output yaml > "$scratch/key.yaml"
from "$scratch/key.yaml" "${kubectl[@]}" apply --filename -

step "The commit, with these Secrets and images"
git -C "$root" archive HEAD deploy | tar -x -C "$scratch/artefact"
for file in "$scratch"/artefact/deploy/infrastructure/local/secrets/*-*.yaml; do
  [ -n "$dry" ] || [ -f "$own/secrets/${file##*/}" ] || stop "${file##*/} is new since this cluster was made: deploy/bootstrap/down.sh, then up.sh, make it anew"
done
run cp -R "$own/secrets/." "$scratch/artefact/deploy/infrastructure/local/secrets/"
run sed -i.before "s|^  IMAGE_TAG: .*|  IMAGE_TAG: $tag|" "$scratch/artefact/deploy/clusters/local/cluster-vars.yaml"
run flux push artifact "oci://$address/housemlops:local" --path "$scratch/artefact" --source housemlops --revision "$branch@sha1:$commit"
from "$scratch/artefact/deploy/clusters/local/flux-system.yaml" "${kubectl[@]}" apply --filename -

step "Flux does the rest"
run "${flux[@]}" reconcile source oci flux-system --timeout 2m
run "${flux[@]}" reconcile kustomization flux-system --timeout 5m
run "${flux[@]}" reconcile kustomization infrastructure --timeout 15m
run "${flux[@]}" reconcile kustomization apps --timeout 25m
if grep -q '^MODEL_VERSION=0$' "$scratch/artefact/deploy/apps/local/model/release.env"; then
  echo "No model has been promoted to this cluster yet: the prediction server waits for deploy/apps/local/model/release.env to name one."
else run "${flux[@]}" reconcile kustomization prediction --timeout 10m; fi

step "Look at it"
for service in prediction/prediction:8800:80 mlflow/mlflow:5000:5000 airflow/airflow-api-server:8080:8080 site/site:8888:80; do
  IFS=/: read -r namespace name here port <<< "$service"
  echo ".venv/bin/kubectl --context kind-$cluster --namespace $namespace port-forward service/$name $here:$port      # http://127.0.0.1:$here"
done
echo "Airflow knows the user admin; the password:"
echo "SOPS_AGE_KEY_FILE=var/deploy/local/age.agekey .venv/bin/sops decrypt --extract '[\"stringData\"][\"admin-password\"]' var/deploy/local/secrets/airflow-airflow.yaml"
