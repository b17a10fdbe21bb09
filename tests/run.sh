# Every check, in the order in which a mistake is cheapest to find. `make test` calls this.
# HOUSEMLOPS_NO_SKIPS=1 makes a test that skips for want of a program a failure.
set -eu
started=$(date +%s)
say() { printf '\n== %s (%d s so far)\n' "$1" $(($(date +%s) - started)); }

say "The notebooks are clean, and the modules are what they export"
housemlops sync --check

say "Each notebook runs by itself (nbdev)"
nbdev-test --n-workers 2 --do-print

say "The numbers in the notebooks are still true (nbval), and the whole works together (pytest)"
python -m pytest -rs --nbval-lax --nbval-cell-timeout 300 -p no:cacheprovider nbs tests
