"""Show gates as people read them."""

import pandas as pd


def figure(value: float) -> str:
    """Return a figure for people: money whole, shares with four digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


def limit_text(limit: float | list[float]) -> str:
    """Return a limit for people; of a pair, the lower and the upper one."""
    return " to ".join(map(figure, limit)) if isinstance(limit, list) else figure(limit)


def verdicts(gates: list[dict]) -> pd.DataFrame:
    """Return one row a gate: its name, value, limit and verdict in words."""
    rows = [
        (
            gate["name"].upper(),
            figure(gate["value"]),
            limit_text(gate["threshold"]),
            "passed" if gate["passed"] else "FAILED",
        )
        for gate in gates
    ]
    names = ["gate", "value", "limit", "verdict"]
    return pd.DataFrame(rows, columns=names).set_index("gate")
