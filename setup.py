"""Ship `configs/` inside the package, as `t5x_lite/configs`, the template of projects, and parts of the report's page.

Everything else is in pyproject.toml and setup.cfg.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["t5x_lite*"]), "t5x_lite.configs"],
    package_dir={"t5x_lite.configs": "configs"},
    package_data={
        "t5x_lite.configs": ["**/*.yaml", "**/*.jinja"],
        "t5x_lite.evaluate.page": ["page.css", "page.js"],
        "t5x_lite.new_project": ["template/**/*", "template/.gitignore"],
    },
)
