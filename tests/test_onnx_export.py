"What the notebook `train` does not show of the ONNX export."

import numpy as np
import onnxruntime
import pytest
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression, Ridge

from housemlops.model.onnx_export import to_onnx


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "model", [Ridge(), LinearRegression(), ElasticNet(alpha=0.01), Lasso(alpha=0.01)]
)
def test_a_linear_model_gives_a_row_the_same_price_alone_and_in_a_batch(model, dtype):
    random = np.random.default_rng(0)
    X = random.normal(size=(300, 200)).astype(np.float32)
    y = X @ random.normal(scale=0.05, size=200) + 12
    model.fit(X.astype(dtype), y)
    session = onnxruntime.InferenceSession(to_onnx(model, X.shape[1]))
    [batch] = session.run(None, {"X": X})
    single = [session.run(None, {"X": row[None]})[0][0] for row in X]
    np.testing.assert_allclose(single, batch, rtol=0, atol=1e-9)
    expected = model.predict(X.astype(dtype))
    np.testing.assert_allclose(batch[:, 0], expected, rtol=1e-5)
