# Every check. `make test` calls this. The notebooks and the tests keep one of two cores each busy, so they go side by side.
# HOUSEMLOPS_NO_SKIPS=1 makes a test that skips for want of a program a failure.
set -eu
started=$(date +%s)
say() { printf '\n== %s (%d s so far)\n' "$1" $(($(date +%s) - started)); }

say "The notebooks are clean, and the modules are what they export"
housemlops sync --check

notebooks() {
    say "Each notebook runs by itself (nbdev)"
    nbdev-test --n-workers 1 --do-print --skip-folder-re '^[_.]|^exercises$'
    say "The numbers in the notebooks are still true (nbval)"
    PYTHONPATH=tests${PYTHONPATH:+:$PYTHONPATH} python -m pytest -p conftest -rs --nbval-lax --nbval-cell-timeout 300 -p no:cacheprovider --junitxml=var/log/junit-notebooks.xml --ignore=nbs/exercises nbs
}

say "The whole works together (pytest), while the notebooks run"
mkdir -p var/log
rm -f var/log/junit-*.xml # benchmarks/suite.py reads those of this run
(set -e; notebooks) > var/log/notebooks.txt 2>&1 &
notebooks=$! result=0
trap 'kill $notebooks 2>/dev/null' EXIT
python -m pytest -rs -p no:cacheprovider --junitxml=var/log/junit-tests.xml tests || result=1
wait $notebooks || result=1
trap - EXIT
cat var/log/notebooks.txt
say "$([ $result = 0 ] && echo "All is well" || echo "Something failed, see above")"
exit $result
