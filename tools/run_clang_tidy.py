#!/usr/bin/env python3
"""Runs clang-tidy on the project's sources, several at a time; prints only what is wrong.

Usage: run_clang_tidy.py --build DIR [-j N] [PART ...]     PART: check only paths that contain it
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys

# A finding begins with its place; the notes that belong to it do too.
FINDING = re.compile(r"^(?=\S+:\d+:\d+: (?:error|warning):)", re.MULTILINE)
FOLDERS = ("src", "tests", "examples", "fuzz")


def sources_of(root, build, parts):
    listing = build / "compile_commands.json"
    if not listing.is_file():
        sys.exit(f"run_clang_tidy: {listing} does not exist; configure first")
    names = set()
    for entry in json.loads(listing.read_text(encoding="utf-8")):
        path = pathlib.Path(entry["directory"], entry["file"]).resolve()
        if any(root / folder in path.parents for folder in FOLDERS):
            name = path.relative_to(root).as_posix()
            if not parts or any(part in name for part in parts):
                names.add(name)
    return sorted(names)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", required=True, type=pathlib.Path)
    parser.add_argument("--clang-tidy", default="clang-tidy-19")
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 2)
    parser.add_argument("parts", nargs="*", metavar="PART")
    options = parser.parse_args()
    root = pathlib.Path(__file__).resolve().parent.parent
    names = sources_of(root, options.build, options.parts)
    if not names:
        sys.exit("run_clang_tidy: there is not one source to look at")

    def tidy(name):
        return name, subprocess.run(
            [options.clang_tidy, "--quiet", "-p", str(options.build), str(root / name)],
            cwd=root, capture_output=True, text=True, check=False)

    failed = []
    reported = set()
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for name, result in pool.map(tidy, names):
            if result.returncode == 0:
                continue
            failed.append(name)
            # A finding in a header comes back with every file that includes it: show it once.
            for finding in FINDING.split(result.stdout.strip() or result.stderr.strip()):
                finding = finding.strip()
                if finding and finding not in reported:
                    reported.add(finding)
                    print(finding, flush=True)
    if failed:
        print(f"run_clang_tidy: {len(reported)} finding(s), from {len(failed)} of {len(names)} files")
        return 1
    print(f"run_clang_tidy: {len(names)} files, no findings")
    return 0


if __name__ == "__main__":
    sys.exit(main())
