"""The faults that the labs put into a checkout."""

from housemlops.learning.code_faults import (
    probe_cry_wolf,
    probe_early_crown,
    probe_loss_twice,
    probe_lost_tag,
    probe_open_secret,
    put_cry_wolf,
    put_early_crown_and_train,
    put_loss_twice,
    put_lost_tag,
    put_open_secret,
)
from housemlops.learning.data_faults import (
    NEW_SALES,
    probe_left_over,
    probe_letter_case,
    probe_missing_data,
    probe_row_number,
    probe_shared_rows,
    put_left_over,
    put_letter_case,
    put_missing_data,
    put_row_number,
    put_shared_rows,
)
from housemlops.learning.lab_tools import BACK, Lab
from housemlops.settings import WorkbookError, did_you_mean

LABS = (
    Lab(
        "loss-twice",
        "Too good to be true",
        10,
        "check a metric by hand, and by another metric",
        "Good news at the stand-up: last night's model has a MAE of less than a thousand dollars, some thirty times better than any before it, and all gates pass. "
        "The estate agents have not noticed anything; they say that prices are off by twenty thousand, as ever.",
        (
            "housemlops stage evaluate",
            "head -5 build/evaluate/predictions.csv",
            "python -m json.tool build/evaluate/metrics.json | head -20",
            "git log --oneline -5",
        ),
        "perf(evaluate): MAE and MSE in batches, so that a large test split fits into memory",
        put_loss_twice,
        probe_loss_twice,
        "The loss of a batch is a mean already; the sum of these means was divided by the number of sales once more.",
        "nbs/evaluate.ipynb, 'Six ways to be wrong', which has three errors by hand (`pytest tests/test_notebooks.py -k evaluate`), and its check that MSE is the square of RMSE",
        BACK,
    ),
    Lab(
        "shared-rows",
        "The stage that refuses",
        10,
        "trace a refusal back to the stage that caused it",
        'The nightly run stops at evaluate: "The model has learned all of the test sales, so its errors on them say nothing: train it again, on the training split alone". '
        "It was trained again, twice. It says the same.",
        (
            "housemlops stage prepare",
            "cat build/prepare/summary.json",
            "git log --oneline -5 -- nbs/prepare.ipynb nbs/train.ipynb nbs/evaluate.ipynb",
            "git show <commit>",
        ),
        "feat(prepare): learn from the newest sales too",
        put_shared_rows,
        probe_shared_rows,
        "The training split was made of all sound sales, those of the test months among them.",
        "the gate `refuse_learned` of the stage evaluate, and 'Check the result' of nbs/prepare.ipynb",
        BACK,
    ),
    Lab(
        "letter-case",
        "Everybody lives nowhere",
        20,
        "compare the same house in training and in serving",
        "An agency whose system writes in capitals complains: since the last release a house costs the same wherever it stands, and each answer has two dozen warnings such as \"'NRIDGHT' is not a known category and counts as unknown\". "
        "The model's test figures are as good as ever.",
        (
            "housemlops stage prepare",
            "python -c \"import pandas as pd; print(pd.read_parquet('build/prepare/train.parquet')['Neighborhood'].value_counts().head())\"",
            "python -c \"from housemlops.contract import *; print([f for f in feature_plan(load_contract('sample')) if f['name'] == 'Street'])\"",
            "git log --oneline -5",
        ),
        "perf: write categories in small letters once, instead of folding them for every price",
        put_letter_case,
        probe_letter_case,
        "Training spelled categories in small letters, requests come in capitals, and the plan no longer said that case does not matter.",
        "monitoring's data-quality check (unknown categories), and tests/test_server.py::test_it_gives_the_evaluated_prices_whatever_the_letter_case",
        BACK,
    ),
    Lab(
        "row-number",
        "Drift, every month",
        15,
        "ask of each feature what it says about a house",
        "Monitoring reports input drift every month now, however ordinary the houses. And two agencies, asking about the same house, were given two prices.",
        (
            'python -c "from housemlops.learning.lab_tools import newest_drift; print(newest_drift())"',
            "git log --oneline -5 -- data",
            "git show <commit> -- data",
        ),
        "feat(contract): the model may use every number",
        put_row_number,
        probe_row_number,
        "`Order`, the number of the row in the ledger, had become a feature.",
        "nbs/contract.ipynb, 'A fingerprint of each sale' (a sale is the same sale under any number), and tests/test_monitor.py::test_a_month_like_the_others_is_no_alarm",
        BACK,
    ),
    Lab(
        "cry-wolf",
        "The alarm that always rings",
        15,
        "tell chance from change when eighty things are compared",
        "The on-call rota asks to switch off the drift alarm. It has rung in each of the last six months, every time because of other columns, and every time the errors were fine.",
        (
            'python -c "from housemlops.learning.lab_tools import newest_drift; print(newest_drift())"',
            "housemlops stage monitor",
            "python -m json.tool build/monitor/verdict.json | head -30",
            "git log --oneline -5 -- nbs/drift.ipynb params.yaml",
        ),
        "fix(drift): no drift is overlooked any more",
        put_cry_wolf,
        probe_cry_wolf,
        "Each of some eighty comparisons was an alarm by itself: no correction for their number, no smallest effect.",
        "tests/test_monitor.py::test_a_month_like_the_others_is_no_alarm, and test_a_bootstrap_of_the_month_is_seldom_an_alarm",
        BACK,
    ),
    Lab(
        "missing-data",
        "Works on my machine",
        15,
        "tell a data version from its bytes",
        'The run on the build server stops before its first stage: "dvc pull failed: Checkout failed for following targets: data/windsor.csv". '
        "The colleague who added this month's sales says that it works. Their machine is var/laptop.",
        (
            "dvc pull data/windsor.csv.dvc",
            "dvc status --cloud data/windsor.csv.dvc",
            "git log --oneline -5 -- data",
            "ls var/laptop/data",
            "cat .dvc/config",
        ),
        NEW_SALES,
        put_missing_data,
        probe_missing_data,
        "The pointer was committed and the data never pushed: it was on one machine only.",
        "tests/test_data.py::test_dvc_pull_gives_the_recorded_bytes",
        (
            "(cd var/laptop && dvc push --quiet data/windsor.csv.dvc && git add data/remote && git commit --quiet --message 'data: the bytes of this month')",
            "git pull --quiet --no-rebase --no-edit var/laptop HEAD",
        ),
    ),
    Lab(
        "left-over",
        "Train it again, it says",
        20,
        "look for files that outlive a run",
        'The nightly run stops at promote: "The model no longer gives the prices it was trained to give: run the stage train again". '
        "The on-call engineer has run it again, with --force even. It says the same.",
        (
            "housemlops stage train",
            "python -c \"from housemlops.promote import reprove; from pathlib import Path; reprove(Path('build/train/model'))\"",
            "ls -la --time-style=full-iso build/train/model/artifacts var",
            "git log --oneline -5",
        ),
        "tune(train): a stronger ridge; keep the converted graph, converting takes long",
        put_left_over,
        probe_left_over,
        "The graph of an earlier run was kept under a fixed name and packed into every later model.",
        "the gate `reprove` of the stage promote (and the server's own proof at its start)",
        (
            *BACK,
            "rm -f var/graph.onnx",
            "python -c \"from housemlops.learning.code_faults import trained_again; from pathlib import Path; trained_again(Path('.'))\"",
        ),
    ),
    Lab(
        "early-crown",
        "A champion nobody chose",
        20,
        "mend the code, and then the state that it left behind",
        'Prices jumped at night. `housemlops rollback` answers: "The promotion log does not know version 2 as the champion (the alias was moved by other means)". '
        "Nobody was at a keyboard at that time.",
        (
            "housemlops trace",
            "tail -2 var/promotions.jsonl",
            "housemlops rollback",
            "git log --oneline -5",
        ),
        "feat(train): new models are live at once",
        put_early_crown_and_train,
        probe_early_crown,
        "Training moved the alias before evaluation had judged the model.",
        "the promotion log: `promote_holds` sees another champion than the receipt names, and rollback refuses",
        (*BACK, "housemlops promote 1 --why 'version 2 was never judged'"),
    ),
    Lab(
        "lost-tag",
        "Whatever I write, it does the same",
        20,
        "follow a value from params.yaml to the line that uses it",
        '"I set prepare.test_months to 6, and the run says it used it. The test still has a whole year in it. Then I set folds, and nothing either. Every run is green."',
        (
            "housemlops stage prepare",
            "cat build/prepare/summary.json",
            "python -m json.tool reports/prepare.ipynb | grep -n -A12 injected-parameters",
            "git log --oneline --stat -5",
        ),
        "chore: notebooks without metadata, for smaller diffs",
        put_lost_tag,
        probe_lost_tag,
        "The tag `parameters` was lost from every notebook, so the defaults overwrote what papermill had put above them; and the guard against it had been taught to look elsewhere.",
        "tests/test_orchestrate.py::test_a_lost_or_doubled_parameters_cell_is_refused",
        BACK,
    ),
    Lab(
        "open-secret",
        "Somebody else is logged in",
        15,
        "treat a secret that was committed as known to all",
        "The database's administrator calls: there are connections as user mlflow from an address that nobody knows. The password was changed last week, and only the cluster should have it.",
        (
            "git log --oneline --stat -5",
            "git log -p -S postgresql:// -- deploy",
            "python -c \"from housemlops.cluster.secrets import leaked_files; from pathlib import Path; print(*leaked_files(Path('.')), sep='\\n')\"",
        ),
        "fix(deploy): MLflow reaches its database again",
        put_open_secret,
        probe_open_secret,
        "A database address with its password had been committed into a configuration file of the cluster. Revoke the password first; what follows only tidies up.",
        "`leaked_files` of housemlops.cluster.secrets, which `housemlops check-deploy` and tests/test_deploy.py call",
        ("git rebase --quiet --onto {commit}^ {commit}",),
    ),
)


BY_NAME = {lab.name: lab for lab in LABS}


def find_lab(name: str) -> Lab:
    "A lab by its name; WorkbookError with the nearest one"
    if name in BY_NAME:
        return BY_NAME[name]
    raise WorkbookError(
        f"There is no lab {name!r}.{did_you_mean(name, BY_NAME) or ' There are ' + ', '.join(BY_NAME) + '.'}"
    )
