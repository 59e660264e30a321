"""Prints the libraries that are linked into the module, with their licences and notices.

Most of these licences ask that whoever passes the binary on passes their notice on. What cargo has downloaded for the build
says it all, so this needs no network.
"""

import json
import subprocess
import sys
from pathlib import Path

NOTICES = ("LICENSE*", "LICENCE*", "COPYING*", "COPYRIGHT*", "NOTICE*", "UNLICENSE*")


def linked(metadata: dict) -> list[dict]:
    """The packages whose code is in the module: normal dependencies of normal dependencies, without procedural macros."""
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    seen, ahead = {root}, [root]
    while ahead:
        for dependency in nodes[ahead.pop()]["deps"]:
            package = packages[dependency["pkg"]]
            normal = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            macro = any("proc-macro" in target["kind"] for target in package["targets"])
            if normal and not macro and package["id"] not in seen:
                seen.add(package["id"])
                ahead.append(package["id"])
    return sorted((packages[name] for name in seen - {root}), key=lambda package: (package["name"], package["version"]))


def notices(package: dict) -> list[str]:
    folder = Path(package["manifest_path"]).parent
    files = sorted({file for pattern in NOTICES for file in folder.glob(pattern) if file.is_file()})
    return ["\n".join(line.rstrip() for line in file.read_text().splitlines()).strip() for file in files]


def main() -> None:
    platform = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout
    host = platform.partition("host: ")[2].split()[0]
    command = ["cargo", "metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform", host]
    metadata = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    packages = linked(metadata)
    texts: dict[str, list[str]] = {}
    print("These libraries are linked into Keyward, beside the standard library of Rust (MIT OR Apache-2.0):\n")
    for package in packages:
        name = f"{package['name']} {package['version']}"
        print(f"  {name}: {package['license']}; {', '.join(package['authors']) or package['repository']}")
        for text in notices(package):
            texts.setdefault(text, []).append(name)
    for text, names in texts.items():
        print(f"\n{'-' * 80}\n{', '.join(names)}:\n\n{text}")


if __name__ == "__main__":
    sys.exit(main())
