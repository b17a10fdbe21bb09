"JupyterLab fetches no news, no version number and no list of extensions; `make` puts it in .venv/etc/jupyter."

c = get_config()  # noqa: F821
c.LabApp.news_url = None
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
c.LabApp.extension_manager = "readonly"
