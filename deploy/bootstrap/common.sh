# shellcheck shell=bash
# What up.sh and down.sh share: names, and how a command is run.
# shellcheck disable=SC2034  # names are used by those who read this file
cluster=housemlops node=housemlops-control-plane registry=housemlops-registry address=localhost:5001
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
own=$root/var/deploy/local      # the key and the Secrets of the local cluster: never in git
dry=
exec 3>&1

case $# in
  0) ;;
  1) [ "$1" = --dry-run ] || { echo "Usage: $(basename "$0") [--dry-run]" >&2; exit 2; }
     dry=1 ;;
  *) echo "Usage: $(basename "$0") [--dry-run]" >&2; exit 2 ;;
esac

stop() { echo "$1" >&2; exit 1; }
step() { printf '\n# %s\n' "$1" >&3; }
say() { { printf '+'; printf ' %q' "$@"; printf '\n'; } >&3; }

run() { # command [argument ...]: say it, and do it unless this is a dry run
  say "$@"
  [ -n "$dry" ] || "$@"
}

from() { # file, command [argument ...]: the same, with a file as its input
  { printf '+'; printf ' %q' "${@:2}"; printf ' < %q\n' "$1"; } >&3
  [ -n "$dry" ] || "${@:2}" < "$1"
}

there() { [ -z "$dry" ] && "$@" >/dev/null 2>&1; }      # command [argument ...]: whether it succeeds; in a dry run nothing is there yet
