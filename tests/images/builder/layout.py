"""An OCI image layout that holds all images. It carries manifest.json too, so that `docker load` takes it as it is."""

import hashlib
import json
import os

_CREATED = "2025-06-15T15:06:40Z"
_TYPES = "application/vnd.oci.image"


class Layout:
    """An OCI layout in a folder, built up image by image."""

    def __init__(self, folder):
        self._folder = folder
        self._blobs = folder / "blobs" / "sha256"
        self._blobs.mkdir(parents=True)
        self._index, self._docker = [], []

    def add_layer(self, file):
        """Take the layer archive `file` (it is moved); returns its descriptor."""
        with open(file, "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        size = file.stat().st_size
        os.rename(file, self._blobs / digest)
        return {"mediaType": f"{_TYPES}.layer.v1.tar", "digest": f"sha256:{digest}", "size": size}

    def add_image(self, name, config, layers):
        """Add the image pouch-test/NAME:latest."""
        config_blob = self._add_json(f"{_TYPES}.config.v1+json", {
            "created": _CREATED, "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
            "history": [{"created": _CREATED, "created_by": f"tests/images/{name}"} for _ in layers],
        })
        manifest = self._add_json(f"{_TYPES}.manifest.v1+json", {
            "schemaVersion": 2, "mediaType": f"{_TYPES}.manifest.v1+json", "config": config_blob, "layers": layers,
        })
        reference = f"docker.io/pouch-test/{name}:latest"
        self._index.append({**manifest, "platform": {"architecture": "amd64", "os": "linux"}, "annotations": {
            "io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference}})
        self._docker.append({"Config": self._path(config_blob), "RepoTags": [f"pouch-test/{name}:latest"],
                             "Layers": [self._path(layer) for layer in layers]})

    def finish(self):
        """Write what names the images."""
        self._write("oci-layout", {"imageLayoutVersion": "1.0.0"})
        self._write("index.json", {"schemaVersion": 2, "mediaType": f"{_TYPES}.index.v1+json", "manifests": self._index})
        self._write("manifest.json", self._docker)

    @staticmethod
    def _path(descriptor):
        return f"blobs/sha256/{descriptor['digest'].removeprefix('sha256:')}"

    def _add_json(self, media_type, value):
        data = json.dumps(value, separators=(",", ":")).encode()
        digest = hashlib.sha256(data).hexdigest()
        (self._blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def _write(self, name, value):
        (self._folder / name).write_text(json.dumps(value), encoding="utf-8")
