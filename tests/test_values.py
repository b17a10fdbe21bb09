"""One rule for values: a cell costs the same by whichever way it comes, and each client is answered in its own protocol."""

import gzip
import json
import math
from pathlib import Path

import jsonschema_rs
import numpy as np
import pandas as pd
import pytest
from starlette.testclient import TestClient
from test_contracts import PLAIN, write_server

from housemlops.contract import Contract, as_contract, load_contract
from housemlops.score import open_model, score_table
from housemlops.serving.app import create_app
from housemlops.serving.running import running

OWN = "http://127.0.0.1"
ROWS = 200
CSV = {"Content-Type": "text/csv"}
INFER = "/v2/models/house-prices-drawn/infer"
KEY = "a-key-of-sixteen-letters"
DATED = PLAIN | {
    "ignore_case": True,
    "columns": PLAIN["columns"]
    | {
        "sold": {"type": "date", "description": "Sold"},
        "rooms": {"type": "integer", "description": "Rooms"},
        "code": {
            "type": "category",
            "description": "Code",
            "categories": ["20", "30"],
            "required": True,
        },
    },
}


def client_of(server: Path, log: Path, root_path: str = "", **options) -> TestClient:
    "A client of a generated server, in this process"
    environ = {"HOUSE_MODEL": str(server / "model")} | {
        f"HOUSE_{name.upper()}": str(value)
        for name, value in ({"database_url": f"sqlite:///{log}"} | options).items()
    }
    app = create_app(server, environ=environ)
    return TestClient(app, OWN, root_path=root_path)


@pytest.fixture(scope="module")
def dated(tmp_path_factory) -> Path:
    "A folder with the server of a small contract, and its model"
    folder = tmp_path_factory.mktemp("dated")
    write_server(folder, as_contract(DATED, "dated"))
    return folder


@pytest.fixture(scope="module")
def client(dated):
    with client_of(dated / "server", dated / "log.db") as client:
        yield client


def tensors(frame: pd.DataFrame, contract: Contract) -> list[dict]:
    "A frame as V2's tensors, missing values as null"
    found = []
    for name in frame:
        column = frame[name].astype(object)
        data = column.where(column.notna(), None).tolist()
        text = any(isinstance(value, str) for value in data)
        kind = "BYTES" if text else "FP64"
        found.append(
            {"name": name, "shape": [len(data)], "datatype": kind, "data": data}
        )
    return found


def scored(model: Path, source: Path) -> pd.DataFrame:
    "A table priced by `housemlops score`"
    target = source.with_name(f"{source.stem}.out.parquet")
    score_table(open_model(model, "m", 1), source, target, overwrite=True)
    return pd.read_parquet(target)


def prices_by_way(
    client: TestClient, model: Path, frame: pd.DataFrame, contract: Contract
) -> dict[str, list]:  # way -> price, low, high of each row
    "What a frame, with the types that pandas gave it, costs by each way to ask"
    columns = json.loads(frame.to_json(orient="split", index=False))
    records = [
        {name: value for name, value in row.items() if value is not None}
        for row in json.loads(frame.to_json(orient="records"))
    ]
    listed = {name: frame[name].to_json(orient="values") for name in frame}
    lists = {name: json.loads(values) for name, values in listed.items()}
    keys = ("price", "low", "high")

    def post(path, **body):
        answer = client.post(path, **body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def invoked(**body):
        rows = post("/invocations", **body)["predictions"]
        return [[row[contract.target], row["low"], row["high"]] for row in rows]

    single = [post("/predict", json=house) for house in records]
    batch = post("/predict/batch", json={"houses": records})["prices"]
    answer = post(INFER, json={"inputs": tensors(frame, contract)})
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    ways = {
        "single": [[found[key] for key in keys] for found in single],
        "batch": [[found[key] for key in keys] for found in batch],
        "split": invoked(json={"dataframe_split": columns}),
        "records": invoked(json={"dataframe_records": records}),
        "instances": invoked(json={"instances": records}),
        "inputs": invoked(json={"inputs": lists}),
        "csv": invoked(content=frame.to_csv(index=False), headers=CSV),
        "v2": [*map(list, zip(*(outputs[key] for key in keys)))],
    }
    for suffix, write in (("csv", frame.to_csv), ("parquet", frame.to_parquet)):
        source = model.parent / f"houses.{suffix}"
        write(source, index=False)
        ways[f"score {suffix}"] = scored(model, source)[[*keys]].to_numpy().tolist()
    return ways


@pytest.mark.slow
def test_200_rows_of_ames_cost_the_same_by_every_way(ledgers, tmp_path):
    "The frame is that of `pd.read_csv`: codes are numbers, and 20.0 where some are missing"
    contract = load_contract("ames")
    server = write_server(tmp_path, contract)
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "artifacts").rename(model / "artifacts")
    table = pd.read_csv(ledgers / "ames.csv")[contract.inputs]
    frame = table.sample(ROWS, random_state=0)
    given, codes = {}, frame["MS.SubClass"]
    for name, written in {
        "20": codes,
        "20.0": codes.astype(float),
        '"20"': codes.astype(str),
        '"20.0"': codes.astype(float).astype(str),
    }.items():
        given[name] = frame.assign(**{"MS.SubClass": written})
    options = {"max_bytes": 10_000_000}
    with client_of(server, tmp_path / "log.db", **options) as client:
        ways = prices_by_way(client, model, given.pop("20"), contract)
        expected = np.array(ways["single"])
        assert expected.shape == (ROWS, 3) and len({*expected[:, 0]}) > 100
        for name, other in given.items():
            rows = json.loads(other.to_json(orient="split", index=False))
            answer = client.post("/invocations", json={"dataframe_split": rows})
            found = [
                [row[contract.target], row["low"], row["high"]]
                for row in answer.json()["predictions"]
            ]
            ways[f"code {name}"] = found
            assert not any("SubClass" in row for row in answer.text.split('"warn')[1:])
    for way, found in ways.items():
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9, err_msg=way)


def test_a_code_is_one_category_however_it_is_written(client, dated):
    prices, house = {}, {"area": 100, "code": "20"}
    for code in ("20", 20, 20.0, "20.0", " 20 "):
        answer = client.post("/predict", json=house | {"code": code}).json()
        receipt = client.get(f"/predictions/{answer['id']}").json()
        assert receipt["inputs"]["code"] == "20" and not answer["warnings"], code
        prices[code] = answer["price"]
    assert len({*prices.values()}) == 1, prices
    curve = {"house": house, "column": "code", "values": [20, "30"]}
    found = client.post("/curve", json=curve).json()["prices"]
    assert found[0] == prices["20"] and None not in found


REFUSED = [
    ("code", "", "is missing"),
    ("code", "  ", "is missing"),
    ("code", "2\n0", "is not a printable text"),
    ("code", "2" * 101, "is not a printable text"),
    ("sold", "2010-02-31", "is not a date"),
    ("sold", "0000-01-01", "is not a date"),
    ("sold", "２０１０-07-31", "is not a date"),
    ("sold", "1280534400000", "is not a date"),
    ("area", 501, "is outside 10 to 500"),
    ("rooms", 2.5, "is not a whole number"),
]


@pytest.mark.parametrize("value", [2**53 + 1, -2.9e41, 1e300])
def test_a_number_too_large_for_a_code_is_refused(client, value):
    answer = client.post("/predict", json={"area": 100, "code": value})
    assert answer.status_code == 422 and "is outside -9007199254740992" in answer.text


@pytest.mark.parametrize("name, value, why", REFUSED)
def test_what_is_refused_is_refused_everywhere(
    client, dated, tmp_path, name, value, why
):
    house = {"area": 100, "code": "20"} | {name: value}
    frame = pd.DataFrame([house])
    answers = {
        "single": client.post("/predict", json=house),
        "batch": client.post("/predict/batch", json={"houses": [house]}),
        "records": client.post("/invocations", json={"dataframe_records": [house]}),
        "csv": client.post(
            "/invocations", content=frame.to_csv(index=False), headers=CSV
        ),
        "v2": client.post(INFER, json={"inputs": tensors(frame, None)}),
    }
    for way, answer in answers.items():
        assert answer.status_code == 422 and why in answer.text, (way, answer.text)
        assert name in answer.text, (way, answer.text)
    for suffix, write in (("csv", frame.to_csv), ("parquet", frame.to_parquet)):
        write(tmp_path / f"houses.{suffix}", index=False)
        found = scored(dated, tmp_path / f"houses.{suffix}").iloc[0]
        assert math.isnan(found["price"]) and why in found["warnings"], suffix


def test_dates_are_read_as_data_frames_write_them(client, dated, tmp_path):
    days = pd.to_datetime(["2010-07-31", "2010-07-01"])
    frame = pd.DataFrame({"area": [100, 100], "code": [20, 30], "sold": days})
    iso = json.loads(frame.to_json(orient="split", index=False, date_format="iso"))
    answer = client.post("/invocations", json={"dataframe_split": iso})
    assert answer.status_code == 200, answer.text
    row = answer.json()["predictions"][0]
    receipt = client.get(f"/predictions/{row['id']}").json()
    assert receipt["inputs"] == {"area": 100, "code": "20", "sold": "2010-07-31"}
    frame.to_parquet(tmp_path / "dates.parquet")
    assert scored(dated, tmp_path / "dates.parquet")["price"][0] == row["paid"]
    epoch = json.loads(frame.to_json(orient="split", index=False, date_format="epoch"))
    answer = client.post("/invocations", json={"dataframe_split": epoch})
    assert answer.status_code == 422 and "2010-07-31" in answer.text


def test_mlflow_answers_have_ids_and_warnings_and_errors_say_what_to_send(client):
    split = {"columns": ["area", "code"], "data": [[100, "99"]]}
    row = client.post("/invocations", json={"dataframe_split": split}).json()
    row = row["predictions"][0]
    assert {*row} == {"paid", "low", "high", "id", "warnings"}
    assert "code: '99' is not a known category" in row["warnings"][0]
    assert client.get(f"/predictions/{row['id']}").json()["price"] == row["paid"]
    twice = {"columns": ["area", "code", "area"], "data": [[100, "20", 200]]}
    for body, headers, status, why in (
        (json.dumps({"dataframe_split": twice}), {}, 422, "'area' is there twice"),
        (json.dumps(split), {}, 422, "exactly one of dataframe_split"),
        (b"area,area,code\n1,2,20", CSV, 422, "'area' is there twice"),
        (b"area,code\n100", CSV, 422, "a value for each column"),
        (b"area,code\n100,\xff", CSV, 422, "Invalid CSV"),
        (b'area,code\n100,"20', CSV, 422, "Invalid CSV"),
        (b"", CSV, 422, "1 to 1000 houses"),
        (b"area", {"Content-Type": "text/plain"}, 415, "text/csv"),
        (b"PAR1", {"Content-Type": "application/octet-stream"}, 415, "text/csv"),
        (gzip.compress(b"{}"), {"Content-Encoding": "gzip"}, 415, "uncompressed"),
    ):
        headers = {"Content-Type": "application/json"} | headers
        answer = client.post("/invocations", content=body, headers=headers)
        assert answer.status_code == status and why in answer.text, answer.text


def tensor(name: str, value: object, **keys: object) -> dict:
    kind = "BYTES" if isinstance(value, str) else "FP64"
    return {"name": name, "shape": [1], "datatype": kind, "data": [value]} | keys


def test_v2_reads_shapes_datatypes_versions_and_outputs(client):
    area, code = tensor("area", 100), tensor("code", "20")
    flat = client.post(INFER, json={"inputs": [area, code]}).json()
    assert [output["name"] for output in flat["outputs"]] == [
        *("price", "low", "high", "id", "warnings"),
    ]
    price = flat["outputs"][0]["data"]
    versioned = INFER.replace("/infer", "/versions/1/infer")
    for inputs in (
        [tensor("area", 100, shape=[1, 1], data=[[100]]), code],
        [tensor("area", 100, shape=[1, 1]), code],
        [tensor("area", 100, datatype="INT32"), tensor("code", 20, datatype="UINT8")],
    ):
        asked = {"inputs": inputs, "outputs": [{"name": "price"}], "id": "mine"}
        answer = client.post(versioned, json=asked).json()
        (output,) = answer["outputs"]
        assert (answer["id"], output["name"], output["data"]) == (
            "mine",
            "price",
            price,
        )
    for inputs, keys, why in (
        ([area, code, area], {}, "'area' is there twice"),
        ([area | {"datatype": "BANANA"}, code], {}, "datatype"),
        ([area | {"datatype": "BYTES"}, code], {}, "data must be BYTES"),
        ([area | {"datatype": "BYTES", "data": ["100"]}, code], {}, "not a number"),
        ([area | {"datatype": "INT8", "data": [1.5]}, code], {}, "data must be INT8"),
        ([area | {"shape": [2]}, code], {}, "shape"),
        ([area, code], {"outputs": [{"name": "nope"}]}, "outputs"),
    ):
        answer = client.post(INFER, json={"inputs": inputs} | keys)
        assert answer.status_code == 422 and {*answer.json()} == {"error"}, answer.text
        assert why in answer.json()["error"], answer.text


def test_v2_errors_are_errors_of_v2(dated, tmp_path):
    with client_of(dated / "server", tmp_path / "log.db", api_keys=KEY) as client:
        key = {"X-API-Key": KEY}
        binary = key | {"Inference-Header-Content-Length": "20"}
        odd = {"Content-Type": "application/octet-stream"}
        name = INFER.removesuffix("/infer")
        for path, headers, status in (
            (name, {}, 401),
            ("/v2/models/nope", key, 404),
            (f"{name}/versions/9", key, 404),
            (f"{name}/config", key, 404),
            (f"{name}/versions/1", key, 200),
            (f"{name}/versions/1/ready", key, 200),
        ):
            answer = client.get(path, headers=headers)
            assert answer.status_code == status, answer.text
            assert status == 200 or {*answer.json()} == {"error"}, answer.text
        for headers, body, status in (
            (binary, b"{}", 415),
            (key | odd, b"{}", 415),
            (key | {"Content-Encoding": "gzip"}, gzip.compress(b"{}"), 415),
            (key | {"Origin": "http://evil.example"}, b"{}", 403),
            (key, b"{", 422),
            (key, b" " * (2 << 20), 413),
        ):
            headers = {"Content-Type": "application/json"} | headers
            answer = client.post(INFER, content=body, headers=headers)
            assert answer.status_code == status, answer.text
            assert isinstance(answer.json()["error"], str)


@pytest.mark.parametrize("prefix", ["", "/house"])
def test_probes_by_head_with_a_slash_and_below_a_prefix(dated, tmp_path, prefix):
    server, log = dated / "server", tmp_path / "log.db"
    with client_of(server, log, prefix, api_keys=KEY) as client:
        for path in ("/livez", "/readyz", "/livez/", "/readyz/"):
            for method in ("GET", "HEAD"):
                answer = client.request(method, prefix + path, follow_redirects=False)
                assert answer.status_code == 200, (method, path)
        key = {"X-API-Key": KEY}
        for path in ("/", "/swagger", "/ping", "/health", "/version", "/v2", "/model"):
            assert client.get(prefix + path).status_code == 401, path
            assert client.head(prefix + path, headers=key).status_code == 200, path
        house = {"area": 100, "code": 20}
        for path in ("/predict", "/predict/"):
            answer = client.post(
                prefix + path, json=house, headers=key, follow_redirects=False
            )
            assert answer.status_code == 200, path
        assert client.head(prefix + "/predict", headers=key).status_code == 405


def test_every_route_and_its_401_is_in_the_description(dated, tmp_path):
    server = dated / "server"
    environ = {"HOUSE_MODEL": str(server / "model"), "HOUSE_API_KEYS": KEY}
    environ |= {"HOUSE_DATABASE_URL": f"sqlite:///{tmp_path}/log.db"}
    client = TestClient(create_app(server, environ=environ), OWN)
    paths = client.get("/openapi.json", headers={"X-API-Key": KEY}).json()["paths"]
    assert {*paths} >= {
        *("/", "/swagger", "/metrics", "/model", "/ping", "/health", "/version"),
        *("/predict", "/predict/batch", "/explain", "/curve", "/predictions/{id}"),
        *("/v2", "/v2/health/live", "/v2/health/ready", "/invocations"),
        *("/v2/models/{name}", "/v2/models/{name}/infer", "/v2/models/{name}/ready"),
        "/v2/models/{name}/versions/{number}/infer",
    }
    for path, methods in paths.items():
        for route in methods.values():
            assert ("401" in route["responses"]) == (path not in ("/livez", "/readyz"))


def test_every_form_of_invocations_is_in_the_description(client):
    document = client.get("/openapi.json").json()
    content = document["paths"]["/invocations"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "text/csv"}
    schema = content["application/json"]["schema"]
    schema = jsonschema_rs.validator_for(
        schema | {"components": document["components"]}
    )
    houses = [{"area": 100, "code": "20"}, {"area": 200, "code": "30"}]
    frame = {"columns": ["area", "code"], "data": [[100, "20"], [200, "30"]]}
    bodies = [
        {"dataframe_split": frame},
        {"dataframe_records": houses},
        {"instances": houses},
        {"inputs": houses},
        {"inputs": {"area": [100, 200], "code": ["20", "30"]}},
    ]
    for body in bodies:
        assert schema.is_valid(body), body
        assert client.post("/invocations", json=body).status_code == 200, body
    for body in ({}, bodies[0] | bodies[1], {"instances": [{"area": "large"}]}):
        assert not schema.is_valid(body), body
        assert client.post("/invocations", json=body).status_code == 422, body


def test_nothing_but_the_program_goes_into_an_image(dated):
    server = dated / "server"
    ignored = (server / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*" and {"!*.py", "!serving", "!model"} <= set(ignored)
    base = next(
        line
        for line in (server / "Dockerfile").read_text().splitlines()
        if line.startswith("FROM ")
    )
    assert "@sha256:" in base


@pytest.mark.slow
def test_clients_of_triton_and_mlflow_need_not_be_changed(dated):
    tritonclient = pytest.importorskip("tritonclient.http")
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    name = "house-prices-drawn"
    with running(dated / "server", patience=120) as url:
        address = url.removeprefix("http://")
        client = tritonclient.InferenceServerClient(address)
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready(name) and client.is_model_ready(name, "1")
        assert client.get_model_metadata(name, "1")["versions"] == ["1"]
        inputs = [
            tritonclient.InferInput("area", [2, 1], "FP64"),
            tritonclient.InferInput("code", [2, 1], "BYTES"),
        ]
        data = np.array([[100.0], [200.0]]), np.array([["20"], ["30"]], dtype=object)
        for one, values in zip(inputs, data):
            one.set_data_from_numpy(values, binary_data=False)
        wanted = [tritonclient.InferRequestedOutput("price", binary_data=False)]
        prices = client.infer(name, inputs, "1", outputs=wanted).as_numpy("price")
        assert client.infer(name, inputs).as_numpy("low").shape == (2,)
        for ask, why in (
            (lambda: client.infer("nope", inputs), "there is no model"),
            (lambda: client.infer(name, inputs[:1]), "Field required"),
            (
                lambda: client.infer(
                    name, inputs, request_compression_algorithm="gzip"
                ),
                "uncompressed",
            ),
        ):
            with pytest.raises(tritonclient.InferenceServerException, match=why):
                ask()
        inputs[0].set_data_from_numpy(data[0], binary_data=True)
        with pytest.raises(tritonclient.InferenceServerException, match="binary_data"):
            client.infer(name, inputs)
        frame = pd.DataFrame({"area": [100, 200], "code": [20, 30]})
        mlflow = ScoringServerClient("127.0.0.1", int(address.rpartition(":")[2]))
        mlflow.ping()
        found = mlflow.invoke(frame).get_predictions()
        np.testing.assert_allclose(found["paid"], prices, rtol=0, atol=1e-9)
