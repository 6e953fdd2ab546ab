"""The base disk: a Debian trixie test host as one ext4 file system in a qcow2 image, with its kernel and initrd beside it."""

import pathlib
import subprocess
import tarfile

from builder.images import build_images
from builder.recipe import Recipe
from builder.root import build_root

from . import artifacts, paths
from .mmdebstrap import make_root
from .report import Step

DISK_SIZE = "24G"

# The initrd has to find one virtio disk, nothing else; unpacking Debian's usual one takes seconds under emulation.
_SMALL_INITRD = ("mkdir -p $1/etc/initramfs-tools/conf.d && "
                 "printf 'MODULES=list\\nCOMPRESS=gzip\\nFSTYPE=ext4\\n' >$1/etc/initramfs-tools/conf.d/testbed && "
                 "cp {modules} $1/etc/initramfs-tools/modules")
_WITHOUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*")
_OLDER_KERNEL = ("linux-image-cloud-amd64",)
_DOCKER_PROGRAMS = ("usr/sbin/dockerd", "usr/bin/docker", "usr/sbin/docker-proxy", "usr/bin/containerd", "usr/bin/ctr",
                    "usr/bin/containerd-shim-runc-v2")


def base_root():
    """The artifact that holds root.tar, vmlinuz and initrd of the test host."""
    return _root("root", "packages")


def small_root():
    """The same of a host without engines and tools."""
    return _root("small-root", "packages-small")


def _root(kind, packages):
    packages = paths.read_list(paths.RECIPE / packages)
    modules = paths.RECIPE / "initramfs-modules"
    key = artifacts.key_of("root 1", *packages, _SMALL_INITRD, *_WITHOUT, modules)
    return artifacts.ensure(kind, key, lambda folder: _build_root(folder, packages, modules))


def _build_root(folder, packages, modules):
    with Step("making the test host's root from Debian trixie (about 2 minutes, once)"):
        options = [f"--dpkgopt=path-exclude={pattern}" for pattern in _WITHOUT]
        options.append(f"--essential-hook={_SMALL_INITRD.format(modules=modules)}")
        make_root(folder / "root.tar", "trixie", packages, log=folder / "mmdebstrap.log", options=options)
        _write_boot_files(folder)


def _write_boot_files(folder):
    """Copy kernel and initrd out of the folder's root.tar."""
    with tarfile.open(folder / "root.tar") as archive:
        for member in archive:
            for prefix, name in (("./boot/vmlinuz-", "vmlinuz"), ("./boot/initrd.img-", "initrd")):
                if member.name.startswith(prefix):
                    (folder / name).write_bytes(archive.extractfile(member).read())


def older_kernel(tools):
    """The artifact that holds the kernel of Debian bookworm: vmlinuz, initrd, and its modules as modules.ext4."""
    modules = paths.RECIPE / "initramfs-modules"
    key = artifacts.key_of("kernel-bookworm 1", *_OLDER_KERNEL, _SMALL_INITRD, modules, tools.key)
    return artifacts.ensure("kernel-bookworm", key, lambda folder: _extract_kernel(folder, tools, modules))


def _extract_kernel(folder, tools, modules):
    with Step("fetching the kernel of Debian bookworm (about a minute, once)"):
        options = [f"--essential-hook={_SMALL_INITRD.format(modules=modules)}"]
        make_root(folder / "root.tar", "bookworm", _OLDER_KERNEL, log=folder / "mmdebstrap.log", variant="apt",
                  options=options)
        _write_boot_files(folder)
        with tarfile.open(folder / "root.tar") as root, tarfile.open(folder / "modules.tar", "w") as archive:
            for member in root:
                path = member.name.removeprefix("./").removeprefix("usr/")
                if path.startswith("lib/modules/") and (member.isreg() or member.isdir()):
                    member.name, member.pax_headers = path.removeprefix("lib/modules/") or ".", {}
                    archive.addfile(member, root.extractfile(member) if member.isreg() else None)
        image = folder / "modules.ext4"
        subprocess.run(["truncate", "-s", "512M", image], check=True)
        tools.run("usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-d", folder / "modules.tar", image)
        for name in ("root.tar", "modules.tar"):
            (folder / name).unlink()


def newer_docker():
    """The artifact that holds Docker's programs of Debian forky."""
    packages = paths.read_list(paths.RECIPE / "docker-28")
    key = artifacts.key_of("docker-28 1", *packages, *_DOCKER_PROGRAMS)
    return artifacts.ensure("docker-28", key, lambda folder: _extract_docker(folder, packages))


def _extract_docker(folder, packages):
    with Step("fetching the next Docker from Debian forky (once)"):
        # A mirror that is a snapshot has an index older than the week for which a suite in development is valid.
        make_root(folder / "root.tar", "forky", packages, log=folder / "mmdebstrap.log", variant="extract",
                  options=['--aptopt=Acquire::Check-Valid-Until "false"'])
        with tarfile.open(folder / "root.tar") as archive:
            for name in _DOCKER_PROGRAMS:
                (folder / pathlib.Path(name).name).write_bytes(archive.extractfile(f"./{name}").read())
        (folder / "root.tar").unlink()


def base_disk(tools):
    """The artifact that holds disk.qcow2 (with the test images as files), vmlinuz and initrd."""
    root, images, docker = base_root(), build_images(tools), newer_docker()
    key = artifacts.key_of("disk 3", DISK_SIZE, root.name, images.name, docker.name, tools.key,
                           paths.RECIPE / "testbed-init")
    return artifacts.ensure("disk", key, lambda folder: _build_disk(folder, tools, root, images, docker))


def _build_disk(folder, tools, root, images, docker):
    def fill(archive):
        for part in ("./opt/docker-28", "./opt/docker-28/bin"):
            _add_folder(archive, part)
        for name in _DOCKER_PROGRAMS:
            program = pathlib.Path(name).name
            _add_file(archive, f"./opt/docker-28/bin/{program}", docker / program, 0o755)
        _add_images(archive, images)

    _make_disk(folder, tools, root, fill)


def small_disk(tools, image):
    """The artifact that holds disk.qcow2 of a host with this one test image and no engines, vmlinuz and initrd."""
    root, content = small_root(), build_root(Recipe(image))
    key = artifacts.key_of("small disk 1", DISK_SIZE, root.name, content.name, tools.key, paths.RECIPE / "testbed-init")

    def fill(archive):
        for part in ("./var/lib/pouch-test", "./var/lib/pouch-test/images"):
            _add_folder(archive, part)
        _add_image(archive, image, content)

    return artifacts.ensure(f"small-disk-{image}", key, lambda folder: _make_disk(folder, tools, root, fill))


def _make_disk(folder, tools, root, fill):
    with Step("making the test host's disk"):
        merged = folder / "disk.tar"
        with tarfile.open(merged, "w", format=tarfile.PAX_FORMAT) as archive:
            _append(archive, root / "root.tar")
            _add_file(archive, "./usr/sbin/testbed-init", paths.RECIPE / "testbed-init", 0o755)
            fill(archive)
        raw = folder / "disk.ext4"
        subprocess.run(["truncate", "-s", DISK_SIZE, raw], check=True)
        tools.run("usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-L", "testbed", "-m", "0",
                  "-E", "lazy_itable_init=0,nodiscard", "-d", merged, raw)
        merged.unlink()
        tools.run("usr/bin/qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, folder / "disk.qcow2")
        raw.unlink()
        for name in ("vmlinuz", "initrd"):
            (folder / name).hardlink_to(root / name)


def _add_images(archive, images):
    top = "./var/lib/pouch-test"
    for folder in (top, f"{top}/images", f"{top}/oci", f"{top}/oci/blobs", f"{top}/oci/blobs/sha256"):
        _add_folder(archive, folder)
    for file in sorted((images / "oci").rglob("*")):
        if file.is_file():
            _add_file(archive, f"{top}/oci/{file.relative_to(images / 'oci')}", file)
    for image in sorted(path.parent for path in images.glob("*/root.tar")):
        _add_image(archive, image.name, image)
        for file in sorted(image.glob("rootfs.*")):
            _add_file(archive, f"{top}/images/{image.name}/{file.name}", file)


def _add_image(archive, name, image):
    """Add the root of the image whose folder is `image`."""
    top = f"./var/lib/pouch-test/images/{name}"
    _add_folder(archive, top)
    _add_folder(archive, f"{top}/rootfs")  # mmdebstrap's archives do not begin with it.
    _append(archive, image / "root.tar", f"{top}/rootfs")


def _append(archive, source, prefix="."):
    """Copy every entry of the tar file `source` into `archive`, below `prefix`."""
    with tarfile.open(source) as entries:
        for member in entries:
            if member.name.startswith("./dev/"):
                continue  # The host has devtmpfs, a container its own.
            content = entries.extractfile(member) if member.isreg() else None
            if prefix != ".":
                member.name = prefix + member.name.removeprefix(".").rstrip("/")
                if member.islnk():
                    member.linkname = prefix + member.linkname.removeprefix(".")
                member.pax_headers = {k: v for k, v in member.pax_headers.items() if k not in ("path", "linkpath")}
            archive.addfile(member, content)


def _add_folder(archive, name):
    member = tarfile.TarInfo(name)
    member.type, member.mode = tarfile.DIRTYPE, 0o755
    archive.addfile(member)


def _add_file(archive, name, source, mode=0o644):
    member = tarfile.TarInfo(name)
    member.size, member.mode = source.stat().st_size, mode
    with open(source, "rb") as content:
        archive.addfile(member, content)
