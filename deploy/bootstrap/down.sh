#!/usr/bin/env bash
# Take the local cluster away, with its registry, its data, its key and its Secrets. It may be run again.
# Usage: down.sh [--dry-run]      a dry run says every command and does nothing
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

if [ -z "$dry" ]; then
  for program in docker kind; do command -v "$program" >/dev/null || stop "$program is not installed: deploy/README.md says what is needed"; done
fi
run kind delete cluster --name "$cluster"
run docker rm --force --volumes "$registry"
run rm -rf "$own"
