"""Convert a fitted model to one ONNX graph, and prove that it predicts the same prices."""

# skl2onnx converts single estimators. Three pieces are written here, because skl2onnx
# cannot convert them, or its form of them is much slower for one house at a time:
# * inputs: skl2onnx writes several nodes for each column; here a block of columns
#   takes a few nodes;
# * the support vector machine: one matrix product, and sums in double precision;
# * histogram gradient boosting: skl2onnx 1.20 passes NumPy scalars, which onnx
#   refuses. scikit-learn has no public attribute for its trees, so `histogram_nodes`
#   reads two private ones.

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from housemlops.estimators import Corrected, Winsorize
from housemlops.model.prices import predict_onnx
from housemlops.settings import WorkbookError

OPSETS = {"": 18, "ai.onnx.ml": 3}
IR_VERSION = 10


class Graph:
    """An ONNX graph under construction, with the input `X`, (n, n_features) float32."""

    def __init__(self, n_features: int):
        self.n_features = n_features
        self.nodes = {}  # serialised node without outputs -> node
        self.constants = {}  # dtype, shape and bytes -> initializer

    def add(self, operation: str, *inputs: str | np.ndarray, **attributes) -> str:
        """Return the output of a node, which is added unless an equal one exists."""
        from onnx import helper

        names = [x if isinstance(x, str) else self.add_constant(x) for x in inputs]
        node = helper.make_node(operation, names, [], **attributes)
        key = node.SerializeToString(deterministic=True)
        if key not in self.nodes:
            node.output.append(f"{operation}_{len(self.nodes)}")
            self.nodes[key] = node
        return self.nodes[key].output[0]

    def add_constant(self, values: np.ndarray) -> str:
        """Return the name of a constant, which is added unless an equal one exists."""
        from onnx import numpy_helper

        values = np.asarray(values, order="C")
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self.constants:
            name = f"constant_{len(self.constants)}"
            self.constants[key] = numpy_helper.from_array(values, name)
        return self.constants[key].name

    def cast(self, name: str, dtype: type) -> str:
        """Return a tensor in another number format."""
        from onnx import helper

        number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.add("Cast", name, to=number)

    def add_model(self, model, x: str) -> str:
        """Return the output of an ONNX model of one input, applied to tensor `x`."""
        from onnx import compose, helper

        part = compose.add_prefix_graph(model.graph, f"part_{len(self.nodes)}_")
        entry = helper.make_node("Identity", [x], [part.input[0].name])
        for node in (entry, *part.node):
            self.nodes[node.SerializeToString(deterministic=True)] = node
        for values in part.initializer:
            self.constants[values.name] = values
        return part.output[0].name

    def to_bytes(self, output: str) -> bytes:
        """Return the ONNX model whose `log_price`, (n, 1) float32, is this tensor."""
        from onnx import TensorProto, helper

        single = TensorProto.FLOAT
        last = helper.make_node("Cast", [output], ["log_price"], to=single)
        graph = helper.make_graph(
            [*self.nodes.values(), last],
            "house_price",
            [helper.make_tensor_value_info("X", single, [None, self.n_features])],
            [helper.make_tensor_value_info("log_price", single, [None, 1])],
            [*self.constants.values()],
        )
        opsets = [helper.make_opsetid(*opset) for opset in OPSETS.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        return model.SerializeToString(deterministic=True)


def add_number_step(graph: Graph, step: BaseEstimator, x: str) -> str:
    """Add a fitted transformer of numbers, (n, n_numbers) float32.

    Raises:
        WorkbookError: The transformer has no ONNX form here.
    """
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import StandardScaler

    match step:
        case SimpleImputer():
            typical = step.statistics_[None].astype(np.float32)
            return graph.add("Where", graph.add("IsNaN", x), typical, x)
        case Winsorize():
            capped = graph.add("Min", x, step.high_[None])
            return graph.add("Max", capped, step.low_[None])
        case StandardScaler():
            centred = graph.add("Sub", graph.cast(x, np.float64), step.mean_[None])
            scaled = graph.add("Div", centred, step.scale_[None])
            return graph.cast(scaled, np.float32)
    raise WorkbookError(
        f"`{type(step).__name__}` has no ONNX form yet: add a case to "
        "`add_number_step` in housemlops/model/onnx_export.py"
    )


def add_one_hot(graph: Graph, encoder, columns: list[int], weight: float) -> str:
    """Add a column for each category, (n, n_categories) float32, `weight` or 0."""
    repeats = [len(categories) for categories in encoder.categories_]
    codes = graph.add("Gather", "X", np.repeat(columns, repeats), axis=1)
    known = np.concatenate(encoder.categories_)[None].astype(np.float32)
    ones = graph.cast(graph.add("Equal", codes, known), np.float32)
    return graph.add("Mul", ones, np.float32(weight))


def add_target_encoding(graph: Graph, encoder, columns: list[int]) -> str:
    """Add the mean log price of each category, (n, n_columns) float32.

    The encodings of all columns form one table. Codes are clipped to one below the
    smallest and one above the largest, where the table holds the mean of all sales.
    """
    table, offsets, lows, highs = [], [], [], []
    for codes, encodings in zip(encoder.categories_, encoder.encodings_):
        low, high = int(codes.min()) - 1, int(codes.max()) + 1
        means = np.full(high - low + 1, encoder.target_mean_)
        means[codes.astype(int) - low] = encodings
        offsets.append(len(table) - low)
        lows.append(low)
        highs.append(high)
        table.extend(means)
    codes = graph.add("Gather", "X", np.array(columns), axis=1)
    capped = graph.add("Min", codes, np.array([highs], dtype=np.float32))
    clipped = graph.add("Max", capped, np.array([lows], dtype=np.float32))
    places = graph.add("Add", clipped, np.array([offsets], dtype=np.float32))
    places = graph.cast(places, np.int64)
    return graph.add("Gather", np.array(table, dtype=np.float32), places)


def add_inputs(graph: Graph, inputs) -> str:
    """Add fitted `scaled_inputs` or `tree_inputs`, (n, n_inputs) float32."""
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, TargetEncoder

    blocks = []
    for name, transformer, columns in inputs.transformers_:
        if name == "remainder" or not len(columns):
            continue
        match transformer:
            case OneHotEncoder():
                weight = inputs.transformer_weights[name]
                block = add_one_hot(graph, transformer, columns, weight)
            case TargetEncoder():
                block = add_target_encoding(graph, transformer, columns)
            case _:
                block = graph.add("Gather", "X", np.array(columns), axis=1)
        if isinstance(transformer, Pipeline):
            for step in transformer:
                block = add_number_step(graph, step, block)
        blocks.append(block)
    return graph.add("Concat", *blocks, axis=1)


def add_svr(graph: Graph, svr, x: str) -> str:
    """Add a support vector machine with a radial kernel, (n, 1) float64.

    |x - s|^2 is |x|^2 + |s|^2 - 2 x·s. The products are in single precision. The sum
    over thousands of large terms that nearly cancel is in double precision.
    """
    vectors, gamma = svr.support_vectors_, svr.gamma
    products = graph.add("MatMul", x, (2 * gamma * vectors.T).astype(np.float32))
    wide = graph.cast(x, np.float64)
    square = graph.add("ReduceSumSquare", wide, np.array([1]))
    exponent = graph.add(
        "Sum",
        graph.cast(products, np.float64),
        graph.add("Mul", square, np.array(-gamma)),
        -gamma * np.sum(vectors**2, axis=1)[None],
    )
    total = graph.add("MatMul", graph.add("Exp", exponent), svr.dual_coef_.T)
    return graph.add("Add", total, svr.intercept_)


def histogram_nodes(model) -> tuple[list[np.ndarray], float]:
    """Return the nodes of each tree as a structured array, and the constant term."""
    trees = [predictor.nodes for (predictor,) in model._predictors]
    return trees, float(model._baseline_prediction.item())


def round_down(values: np.ndarray) -> np.ndarray:
    """Return the largest float32 numbers that are not above the values."""
    single = values.astype(np.float32)
    below = np.nextafter(single, np.float32(-np.inf))
    return np.where(single > values, below, single)


def add_histogram_trees(graph: Graph, model, x: str) -> str:
    """Add histogram gradient boosting without native categories, (n, 1) float32."""
    trees, baseline = histogram_nodes(model)
    nodes = np.concatenate(trees)
    leaf = nodes["is_leaf"] > 0
    tree_ids = np.concatenate([np.full(len(t), i) for i, t in enumerate(trees)])
    node_ids = np.concatenate([np.arange(len(tree)) for tree in trees])

    def branches(values: np.ndarray) -> list:
        return np.where(leaf, 0, values).tolist()

    return graph.add(
        "TreeEnsembleRegressor",
        x,
        domain="ai.onnx.ml",
        n_targets=1,
        base_values=[baseline],
        nodes_treeids=tree_ids.tolist(),
        nodes_nodeids=node_ids.tolist(),
        nodes_modes=np.where(leaf, "LEAF", "BRANCH_LEQ").tolist(),
        nodes_featureids=branches(nodes["feature_idx"]),
        nodes_values=branches(round_down(nodes["num_threshold"])),
        nodes_truenodeids=branches(nodes["left"]),
        nodes_falsenodeids=branches(nodes["right"]),
        nodes_missing_value_tracks_true=branches(nodes["missing_go_to_left"]),
        target_treeids=tree_ids[leaf].tolist(),
        target_nodeids=node_ids[leaf].tolist(),
        target_ids=[0] * int(leaf.sum()),
        target_weights=nodes["value"][leaf].tolist(),
    )


def add_estimator(graph: Graph, estimator: BaseEstimator, x: str) -> str:
    """Add any other estimator as skl2onnx converts it."""
    import skl2onnx
    from skl2onnx.common.data_types import FloatTensorType

    columns = FloatTensorType([None, estimator.n_features_in_])
    model = skl2onnx.to_onnx(
        estimator, initial_types=[("X", columns)], target_opset=OPSETS
    )
    return graph.add_model(model, x)


def add_linear(graph: Graph, model: BaseEstimator, x: str) -> str:
    """Add a linear model, (n, 1) float64.

    The sum is in double precision, so that a row costs the same alone and in a batch.
    """
    coefficients = model.coef_.reshape(-1, 1).astype(np.float64)
    intercept = np.reshape(model.intercept_, (1, 1)).astype(np.float64)
    total = graph.add("MatMul", graph.cast(x, np.float64), coefficients)
    return graph.add("Add", total, intercept)


def add_step(graph: Graph, step: BaseEstimator, x: str) -> str:
    """Add a fitted step of a pipeline, applied to tensor `x`."""
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import ElasticNet, LinearRegression, Ridge
    from sklearn.svm import SVR

    match step:
        case ColumnTransformer():
            return add_inputs(graph, step)
        case SimpleImputer():
            return add_number_step(graph, step, x)
        case SVR(kernel="rbf", gamma=float()):
            return add_svr(graph, step, x)
        case Ridge() | LinearRegression() | ElasticNet():  # and Lasso
            return add_linear(graph, step, x)
        case HistGradientBoostingRegressor():
            return add_histogram_trees(graph, step, x)
    return add_estimator(graph, step, x)


def weighted_sum(model: BaseEstimator, weight: float = 1.0) -> list[tuple[float, Any]]:
    """Return the weights and fitted pipelines whose weighted sum a fitted model is."""
    from sklearn.ensemble import VotingRegressor

    match model:
        case Corrected():
            parts = [(1.0, model.model_), (1.0, model.correction_)]
        case VotingRegressor():
            votes = np.array(model.weights or [1.0] * len(model.estimators_))
            parts = [*zip(votes / votes.sum(), model.estimators_)]
        case _:
            return [(weight, model)]
    terms = []
    for share, part in parts:
        terms.extend(weighted_sum(part, weight * float(share)))
    return terms


def to_onnx(model: BaseEstimator, n_features: int) -> bytes:
    """Convert a fitted model.

    Returns:
        ONNX that takes `X`, (n, n_features) float32, and gives `log_price`, (n, 1).
    """
    from sklearn.pipeline import Pipeline

    graph = Graph(n_features)
    terms = []
    for weight, part in weighted_sum(model):
        x = "X"
        for step in part if isinstance(part, Pipeline) else [part]:
            x = add_step(graph, step, x)
        x = graph.cast(x, np.float64)
        terms.append(graph.add("Mul", x, np.array(weight)))
    return graph.to_bytes(graph.add("Sum", *terms))


def parity(
    model: BaseEstimator, graph: bytes, X: np.ndarray, largest: float = 1e-4
) -> dict:
    """Compare the prices of a model and of its ONNX form, row by row.

    Returns:
        rows; largest_relative_difference and allowed, as shares of the price.

    Raises:
        WorkbookError: They differ by more than `largest`.
    """
    ratio = predict_onnx(graph, X) / np.exp(model.predict(X))
    difference = float(np.max(np.abs(ratio - 1)))
    if not difference <= largest:
        raise WorkbookError(
            f"The ONNX form differs from the model by {difference:.2g} of the price, "
            f"more than {largest:g}: do not ship it"
        )
    return {
        "rows": len(X),
        "largest_relative_difference": float(f"{difference:.1e}"),
        "allowed": largest,
    }
