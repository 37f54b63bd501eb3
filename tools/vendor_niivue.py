"""Fetch the pinned NiiVue that the reader study ships: its one-file bundle and all licence texts.

    python tools/vendor_niivue.py

npm resolves the pinned version; the bundle must have the recorded hash, or nothing is written.
The bundle is the maker's own file, unchanged. The package on npm has no licence file, so NiiVue's
text (https://github.com/niivue/niivue/blob/main/LICENSE) is kept here.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE, VERSION = "@niivue/niivue", "0.69.0"
SHA256 = "d6c2be4feb1ad53b2ac76b4196da8d8fd2263b662b511c55ca0fd127eb6a6532"
BUNDLE = "dist/index.js"
# What the bundle's own list (dist/metafile-esm.json) says is in it.
BUNDLED = (
    *("@lukeed/uuid", "@ungap/structured-clone", "@zarrita/storage", "array-equal", "fflate"),
    *("gl-matrix", "nifti-reader-js", "numcodecs", "zarrita"),
)
VENDOR = Path(__file__).parents[1] / "client" / "rating" / "static" / "vendor"

NIIVUE_LICENSE = """BSD 2-Clause License

Copyright (c) 2021, Niivue
All rights reserved.

Redistribution and use in source and binary forms, with or without
modification, are permitted provided that the following conditions are met:

1. Redistributions of source code must retain the above copyright notice, this
   list of conditions and the following disclaimer.

2. Redistributions in binary form must reproduce the above copyright notice,
   this list of conditions and the following disclaimer in the documentation
   and/or other materials provided with the distribution.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS"
AND ANY EXPRESS OR IMPLIED WARRANTIES, INCLUDING, BUT NOT LIMITED TO, THE
IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE
DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE
FOR ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR CONSEQUENTIAL
DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR
SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER
CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER IN CONTRACT, STRICT LIABILITY,
OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE
OF THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.
"""


def main() -> None:
    """Install into a temporary folder, check, copy."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run([*command, f"{PACKAGE}@{VERSION}"], cwd=folder, check=True)
        modules = Path(folder) / "node_modules"
        bundle = (modules / PACKAGE / BUNDLE).read_bytes()
        digest = hashlib.sha256(bundle).hexdigest()
        if digest != SHA256:
            sys.exit(f"{PACKAGE}@{VERSION} {BUNDLE}: sha256 {digest}, pinned is {SHA256}")
        licences = "\n".join(_licence(modules, name) for name in BUNDLED)
    VENDOR.mkdir(parents=True, exist_ok=True)
    (VENDOR / "niivue.js").write_bytes(bundle)
    own = f"=== {PACKAGE} {VERSION} (BSD-2-Clause) ===\n\n{NIIVUE_LICENSE}"
    (VENDOR / "LICENSES.txt").write_text(f"{own}\n{licences}", encoding="utf-8")
    record = {"package": PACKAGE, "version": VERSION, "file": BUNDLE, "sha256": SHA256}
    (VENDOR / "niivue.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _licence(modules: Path, name: str) -> str:
    package = json.loads((modules / name / "package.json").read_text())
    (path,) = (p for p in (modules / name).iterdir() if p.name.lower().startswith("licen"))
    text = path.read_text(encoding="utf-8").strip()
    return f"=== {name} {package['version']} ({package['license']}) ===\n\n{text}\n"


if __name__ == "__main__":
    main()
