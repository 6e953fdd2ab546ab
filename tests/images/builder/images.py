"""All test images together: roots, one OCI layout with shared layers, and file system images of the roots that ask for it."""

import concurrent.futures
import os
import subprocess

from host import artifacts
from host.report import Step

from .layer import delta_layer, whole_layer
from .layout import Layout
from .recipe import SOURCES, all_recipes
from .root import build_root

# These roots come as EROFS and ext4 images too, for tests with a root on a block device.
AS_FILE_SYSTEM = ("busybox", "debian")
# An ext4 image's room for what a container writes.
EXT4_SPARE_MIB = 64


def build_images(tools):
    """The artifact that holds oci/ (the layout) and NAME/root.tar, for two images NAME/rootfs.erofs and .ext4 too."""
    key = artifacts.key_of("images 1", tools.key, *(recipe.name for recipe in all_recipes()), SOURCES)
    return artifacts.ensure("images", key, lambda folder: _build(folder, tools))


def _build(folder, tools):
    recipes = all_recipes()
    names = ", ".join(recipe.name for recipe in recipes)
    with Step(f"making the test images {names} from Debian packages (about 2 minutes, once)"):
        with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
            roots = dict(zip((recipe.name for recipe in recipes), pool.map(build_root, recipes)))
        (folder / "oci").mkdir()
        layout, layers = Layout(folder / "oci"), {}
        for recipe in recipes:
            archive = roots[recipe.name] / "root.tar"
            (folder / recipe.name).mkdir()
            (folder / recipe.name / "root.tar").hardlink_to(archive)
            layer = folder / "layer.tar"
            if recipe.base:
                delta_layer(roots[recipe.base.name] / "root.tar", archive, layer)
                below = layers[recipe.base.name]
            else:
                whole_layer(archive, layer)
                below = []
            layers[recipe.name] = [*below, layout.add_layer(layer)]
            layout.add_image(recipe.name, recipe.config, layers[recipe.name])
            if recipe.name in AS_FILE_SYSTEM:
                _make_file_systems(tools, archive, folder / recipe.name)
        layout.finish()


def _make_file_systems(tools, archive, folder):
    tools.run("usr/bin/mkfs.erofs", "--quiet", "--tar=f", folder / "rootfs.erofs", archive)
    size = os.stat(archive).st_size // (1 << 20) * 5 // 4 + EXT4_SPARE_MIB
    subprocess.run(["truncate", "-s", f"{size}M", folder / "rootfs.ext4"], check=True)
    tools.run("usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=0",
              "-d", archive, folder / "rootfs.ext4")
