"What every kernel of this environment does, in JupyterLab as under papermill; `make` puts it in .venv/etc/ipython."

c = get_config()  # noqa: F821
c.InlineBackend.figure_formats = {"retina"}  # plots are crisp on any screen
# The package switches off the telemetry of what a notebook imports, also in a kernel that `housemlops` did not start.
# A notebook imports much and throws away little: look for garbage rarely, and not when all of it goes anyway.
c.IPKernelApp.exec_lines = [
    "__import__('housemlops')",
    "__import__('gc').set_threshold(50_000, 20, 100)",
    "__import__('atexit').register(__import__('gc').freeze)",
]
