"""What an image is made from: a folder tests/images/NAME with image.json and, if need be, prepare, setup and files/."""

import json
import pathlib

SOURCES = pathlib.Path(__file__).resolve().parent.parent
DEFAULT_ENV = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]


class Recipe:
    """One image's recipe."""

    def __init__(self, name):
        self.name = name
        self.folder = SOURCES / name
        described = json.loads((self.folder / "image.json").read_text(encoding="utf-8"))
        self.base = Recipe(described["base"]) if "base" in described else None
        self.packages = (self.base.packages if self.base else []) + described["packages"]
        config = described["config"]
        self.config = {**config, "Env": DEFAULT_ENV + config.get("Env", [])}

    def hook(self, name):
        """The script prepare or setup, if the recipe has it."""
        script = self.folder / name
        return script if script.exists() else None


def all_recipes():
    """Every recipe, bases before what is built on them."""
    recipes = [Recipe(file.parent.name) for file in sorted(SOURCES.glob("*/image.json"))]
    return sorted(recipes, key=lambda recipe: recipe.base is not None)
