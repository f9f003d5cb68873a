"""An extension of the site: with the repository's address in _config.yml come the buttons that lead there.

Jupyter Book refuses such buttons where the address is empty, and it would take two settings to switch them on.
"""

LAUNCH = {
    "notebook_interface": "jupyterlab",
    "binderhub_url": "https://mybinder.org",
    "colab_url": "https://colab.research.google.com",
}


def add_buttons(_app, config) -> None:
    """Source, edit, Binder and Colab, where there is an address."""
    options = config.html_theme_options
    if options.get("repository_url"):
        buttons = {"use_repository_button": True, "use_edit_page_button": True}
        config.html_theme_options = {**options, **buttons, "launch_buttons": LAUNCH}


def setup(app) -> dict:
    app.connect("config-inited", add_buttons)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
