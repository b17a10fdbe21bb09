"""Draw the packages of housemlops and their imports, in the layers of the linter."""

import ast
import tomllib
from importlib.util import find_spec
from pathlib import Path

from housemlops.pipeline.graph import pipeline
from housemlops.site.figures import LIGHT, figure_svg, new_figure

PACKAGE = "housemlops"
BOX_WIDTH, BOX_HEIGHT = 0.86, 0.42  # of a column and of a row


def read_layers(root: Path) -> list[list[str]]:
    """Return the layers that import-linter enforces, the highest first.

    Args:
        root: Repository; its pyproject.toml declares the layers. A stage of dvc.yaml
            that is in no layer yet is put beside the other stages.
    """
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings.get("tool", {}).get("importlinter", {}).get("contracts", [])
    declared = [each["layers"] for each in contracts if each["type"] == "layers"]
    layers = [
        [name.strip() for name in layer.replace("|", ":").split(":")]
        for layer in (declared[0] if declared else [])
    ]
    stages = list(pipeline(root))
    listed = {name for layer in layers for name in layer}
    new = [stage for stage in stages if stage not in listed]
    for layer in layers:
        if new and layer[0] in stages:
            layer += [name for name in new if (root / PACKAGE / f"{name}.py").is_file()]
    return layers


def find_imports(layers: list[list[str]]) -> dict[str, set[str]]:
    """Return the packages that each package imports.

    Args:
        layers: Of `read_layers`. What is in no layer is left out.
    """
    import grimp

    names = [name for layer in layers for name in layer]
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    owner = {
        module: module.split(".")[1]
        for module in graph.modules
        if "." in module and module.split(".")[1] in names
    }
    imports = {name: set() for name in names}
    for module, package in owner.items():
        for imported in graph.find_modules_directly_imported_by(module):
            if owner.get(imported, package) != package:
                imports[package].add(owner[imported])
    return imports


def direct_arrows(
    layers: list[list[str]], imports: dict[str, set[str]]
) -> list[tuple[str, str]]:
    """Return the imports to draw: from a layer to a lower one, unless others imply it.

    Imports of the lowest layer are left out, since nearly every package has one.
    """
    import networkx

    level = {name: i for i, layer in enumerate(layers) for name in layer}
    graph = networkx.DiGraph()
    for high, lows in imports.items():
        shown = [low for low in lows if level[high] < level[low] < len(layers) - 1]
        graph.add_edges_from((high, low) for low in shown)
    return sorted(networkx.transitive_reduction(graph).edges)


def place_boxes(
    layers: list[list[str]], arrows: list[tuple[str, str]]
) -> dict[str, tuple[float, float]]:
    """Return the centre of each box: layers as rows, each name near those importing it."""
    columns = max((len(layer) for layer in layers), default=1)
    places = {}
    for row, layer in enumerate(layers):

        def mean_of_importers(name: str) -> float:
            above = [places[high][0] for high, low in arrows if low == name]
            return sum(above) / len(above) if above else 0.0

        ordered = sorted(layer, key=mean_of_importers)
        for i, name in enumerate(ordered):
            places[name] = (columns * (i + 0.5) / len(layer), -float(row))
    return places


def draw_packages(layers: list[list[str]], imports: dict[str, set[str]]):
    """Return a figure of the packages, an arrow from each to those that it imports."""
    from matplotlib.patches import FancyBboxPatch

    arrows = direct_arrows(layers, imports)
    places = place_boxes(layers, arrows)
    columns = max((len(layer) for layer in layers), default=1)
    figure = new_figure(1.45 * columns, 0.95 * len(layers))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, columns)
    axes.set_ylim(-len(layers) + 0.5, 0.5)
    for high, low in arrows:
        (x1, y1), (x2, y2) = places[high], places[low]
        axes.annotate(
            "",
            xy=(x2, y2 + BOX_HEIGHT / 2),
            xytext=(x1, y1 - BOX_HEIGHT / 2),
            arrowprops={"arrowstyle": "->", "color": LIGHT["muted"], "linewidth": 1},
        )
    for name, (x, y) in places.items():
        axes.add_patch(
            FancyBboxPatch(
                (x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2),
                BOX_WIDTH,
                BOX_HEIGHT,
                boxstyle="round,pad=0,rounding_size=0.06",
                facecolor=LIGHT["paper"],
                edgecolor=LIGHT["primary"],
                linewidth=1.3,
                url=f"#{name}",
                zorder=3,
            )
        )
        axes.text(
            x,
            y,
            name,
            color=LIGHT["text"],
            fontsize=9.5,
            ha="center",
            va="center",
            zorder=4,
        )
    return figure


def package_svg(layers: list[list[str]], imports: dict[str, set[str]]) -> str:
    """Return the picture of the packages as an SVG element with a text alternative."""
    if not layers:
        return ""
    sentences = [
        f"{name} imports {', '.join(sorted(lows)) or 'nothing'}."
        for name, lows in imports.items()
    ]
    links = {f"#{name}": name for name in imports}
    title = "The packages of housemlops and what they import"
    figure = draw_packages(layers, imports)
    return figure_svg(figure, title, " ".join(sentences), links)


def describe_packages(
    layers: list[list[str]], imports: dict[str, set[str]]
) -> list[tuple[str, str, list[str]]]:
    """Return each package's name, the first line of its docstring and its imports."""
    rows = []
    for layer in layers:
        for name in layer:
            module = find_spec(f"{PACKAGE}.{name}")
            source = Path(module.origin).read_text(encoding="utf-8")
            summary = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
            rows.append((name, summary, sorted(imports[name])))
    return rows
