"""The tests mirror the package: every folder, and every file in the root, has its counterpart."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "jaxmem"
OTHER_FOLDERS = {"support", "golden", "parity", "docs", "full_size"}
"""What tests share; stored vectors, other people's models, the pages, models of published sizes."""
OTHER_FILES = {
    "cli_stream", "embedding", "embedding_options", "laws_everywhere", "levels", "public", "seams",
    "style", "tree", "wheel",
}  # fmt: skip
"""What is about the whole package: its laws, levels, names and face, seams, wheel, main job."""


def folders(root):
    """Return the folders below a root that hold Python files, without hidden ones."""
    found = {file.parent.relative_to(root) for file in root.rglob("*.py")}
    return {folder for folder in found if not any(p[0] in "._" for p in folder.parts)}


def test_every_folder_is_one_of_the_package():
    found = {folder for folder in folders(TESTS) if folder.parts}
    mine = {folder for folder in found if folder.parts[0] not in OTHER_FOLDERS}
    assert sorted(mine - folders(PACKAGE)) == []
    assert {folder.parts[0] for folder in found - mine} == OTHER_FOLDERS


def test_every_file_in_the_root_is_one_of_the_package():
    files = {path.stem.removeprefix("test_") for path in TESTS.glob("test_*.py")}
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    assert sorted(files - modules - OTHER_FILES) == []
    assert sorted(OTHER_FILES - files) == []  # nothing is excused that is not there
