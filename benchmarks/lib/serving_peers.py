"""What benchmarks/serving.py compares with: the scikit-learn pipeline, and three servers, made by `uvicorn --factory`, with their files named in the environment"""

import inspect
import json
import logging
import os
import sys
from pathlib import Path


def house_model():
    "The generated project's House"
    server = Path(os.environ["BENCH_SERVER"])
    sys.path.insert(0, str(server))
    from serving.requests import request_model

    contract = (server / "model/contract.json").read_text(encoding="utf-8")
    return request_model(json.loads(contract))


def constant():
    from fastapi import FastAPI
    from pydantic import BaseModel

    House, app = house_model(), FastAPI()

    class Price(BaseModel):
        id: str
        price: float
        low: float
        high: float
        level: float
        currency: str
        unit: str
        model: str
        version: int
        warnings: list[str]

    @app.post("/predict")
    async def predict(house: House) -> Price:
        return Price(
            id="b1dc4a35fb91-0123456789abcdef",
            price=180_000.0,
            low=160_000.0,
            high=200_000.0,
            level=0.9,
            currency="USD",
            unit="USD per house sale",
            model="house-prices",
            version=1,
            warnings=[],
        )

    return app


def plain():
    import joblib
    import numpy as np
    import pandas as pd
    from fastapi import FastAPI

    from housemlops.predict import encode

    House, app = house_model(), FastAPI()
    model, plan = (
        joblib.load(os.environ["BENCH_ESTIMATOR"]),
        json.loads(Path(os.environ["BENCH_PLAN"]).read_text(encoding="utf-8")),
    )

    @app.post("/predict")
    def predict(house: House) -> dict:
        frame = pd.DataFrame([house.model_dump(by_alias=True)])
        return {"price": float(np.exp(model.predict(encode(frame, plan)))[0])}

    return app


def bridge():
    import httpx
    from fastapi import FastAPI
    from sqlalchemy import JSON, create_engine
    from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

    House, app, client = (
        house_model(),
        FastAPI(),
        httpx.AsyncClient(base_url=os.environ["BENCH_BEHIND"], timeout=60),
    )
    engine = create_engine(os.environ["BENCH_DATABASE"])

    class Base(DeclarativeBase):
        pass

    class Prediction(Base):
        __tablename__ = "predictions"
        id: Mapped[int] = mapped_column(primary_key=True)
        inputs: Mapped[dict] = mapped_column(JSON)
        price: Mapped[float]

    Base.metadata.create_all(engine)

    @app.post("/predict")
    async def predict(house: House) -> dict:
        inputs = house.model_dump(by_alias=True, exclude_none=True)
        answer = await client.post("/invocations", json=as_frame(inputs))
        price = mlflow_price(answer.raise_for_status().json())
        with Session(engine) as session:
            session.add(Prediction(inputs=inputs, price=price))
            session.commit()
        return {"price": price}

    return app


def as_frame(house: dict) -> dict:
    return {"dataframe_split": {"columns": [*house], "data": [[*house.values()]]}}


def mlflow_price(answer: dict) -> float:  # the first number of the only row
    row = answer["predictions"][0]
    return next(iter(row.values())) if isinstance(row, dict) else row


def fit(build: Path, contract, graph: bytes):  # -> sklearn estimator
    "The scikit-learn pipeline behind the champion, fitted as the stage `train` does and proven to give the same prices"
    import pandas as pd

    from housemlops import estimators, train
    from housemlops.contract import feature_plan
    from housemlops.model.onnx_export import parity
    from housemlops.settings import params

    known, plan = params(build.parent)["train"], feature_plan(contract)
    X, y = train.training_arrays(
        pd.read_parquet(build / "prepare/train.parquet"), contract
    )
    parts = estimators.members(
        plan,
        **{
            name: known[name]
            for name in inspect.signature(estimators.members).parameters
            if name in known
        },
    )
    with estimators.one_thread():
        model = estimators.choose(
            pd.read_csv(build / "train/comparison.csv", index_col="model"), parts
        )[1].fit(X, y)
    parity(model, graph, X)
    return model


def save_sklearn(model, contract, folder: Path) -> None:
    "The pipeline in MLflow's scikit-learn flavour: a frame in, the logarithm of the price out"
    import mlflow.sklearn
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    from housemlops.contract import feature_plan, mlflow_signature
    from housemlops.predict import encode

    logging.getLogger("mlflow.sklearn").setLevel(logging.ERROR)  # it warns of pickles
    pipeline = make_pipeline(
        FunctionTransformer(encode, kw_args={"plan": feature_plan(contract)}), model
    )
    mlflow.sklearn.save_model(
        pipeline,
        folder,
        signature=mlflow_signature(contract),
        serialization_format="cloudpickle",
        pip_requirements=[],
    )
