"""What stands in backticks on a page exists: names, options, files. So old words do not stay."""

import ast
import importlib
import inspect
import re
from functools import cache

import pytest
from pages import PAGES, ROOT, inline_code, name_of

import jaxmem
from jaxmem.experiments.memories import options_class
from jaxmem.memory import MEMORIES

OUTSIDE = set(
    """
    jm CHANGELOG README nav assert cuda12 notebooks docs parity a_k s_k K_a K_v SharedOffset
    dev yml mkdocs
    ceil int fold_in get_config partial_reset video_end save_pretrained huggingface_hub
    target_modules
    """.split()
)
"""Words of formulas, extras, files, tests, other packages and releases."""
PLACEHOLDER = re.compile(r"NAME|OPTION|DIR\b|FILE\b|VALUE|A,B|\.\.\.|mine|N\b")


def _words_of(node: ast.AST) -> set[str]:
    """What a node of the sources names."""
    if isinstance(node, ast.Name):
        return {node.id}
    if isinstance(node, ast.Attribute):
        return {node.attr}
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.arg | ast.keyword):
        return {str(node.arg)}
    if isinstance(node, ast.alias):
        return set(node.name.split("."))
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 80:
        return set(re.findall(r"\w+", node.value))
    return set()


@cache
def words() -> set[str]:
    """Every name of the sources, and every word of their short strings; not of comments."""
    found = {path.stem for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    found |= {path.name for path in (ROOT / "jaxmem").rglob("*")}
    for path in (ROOT / "jaxmem").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found |= _words_of(node)
    return found


@cache
def functions() -> set[str]:
    """Every function and method of the package."""
    nodes = [
        node
        for path in (ROOT / "jaxmem").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
    ]
    return {n.name for n in nodes if isinstance(n, ast.FunctionDef)}


@cache
def classes() -> dict[str, type]:
    """Every class of the package by its name."""
    found = {}
    for path in (ROOT / "jaxmem").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        names = [n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef)]
        if names and "__main__" not in module and "pallas" not in module:
            loaded = importlib.import_module(module)
            found |= {name: getattr(loaded, name) for name in names}
    return found


@cache
def options() -> set[str]:
    """Every option of every command: fields and arguments of what they are parsed to."""
    found = {"help", "help-memory", "all-files", "strict"}  # of argparse, pre-commit, mkdocs
    for path in (ROOT / "jaxmem").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and path.parts[-2] != "memory":
                fields = [n.target.id for n in node.body if isinstance(n, ast.AnnAssign)]
                found |= {f.replace("_", "-") for f in fields}
            if isinstance(node, ast.FunctionDef) and node.name == "main":
                found |= {a.arg.replace("_", "-") for a in node.args.args}
    text = (ROOT / "tests" / "conftest.py").read_text()
    return found | set(re.findall(r'addoption\(\s*"--([\w-]+)"', text))


def resolved(dotted: str):
    """The object of a dotted name that begins with `jaxmem`."""
    parts = dotted.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for name in parts[n:]:
            fields = getattr(found, "__dataclass_fields__", {})
            found = fields[name] if name in fields else getattr(found, name)
        return found
    raise AttributeError(dotted)


def faults(code: str) -> list[str]:
    """What is wrong with one piece of inline code."""
    wrong = []
    if PLACEHOLDER.search(code):
        return wrong
    for memory, option in re.findall(r"--(\w+)\.([\w-]+)", code):
        known = {f.replace("_", "-") for f in options_class(memory).__dataclass_fields__}
        if option.replace("_", "-").removeprefix("no-") not in known:
            wrong.append(f"--{memory}.{option}")
    for option in re.findall(r"(?<![\w-])--([a-z][\w-]*)(?![\w.-])", code):
        if not {option, option.removeprefix("no-")} & options() and not code.startswith("pip"):
            wrong.append(f"--{option}")
    for path in re.findall(r"(?:jaxmem|tests|docs|configs|notebooks|experiments)/[\w./-]+", code):
        if not (ROOT / path).exists():
            wrong.append(path)
    for dotted in re.findall(r"(?<![\w./-])(?:jm|jaxmem)(?:\.\w+)+", code):
        try:
            resolved(re.sub(r"^jm\b", "jaxmem", dotted))
        except (AttributeError, KeyError):
            wrong.append(dotted)
    wrong += [f"{call}: {why}" for call, why in bad_calls(code)]
    for owner, name in re.findall(r"(?<![\w./])([A-Z]\w+)\.([a-z]\w*)", code):
        if owner in classes() and not _has(classes()[owner], name):
            wrong.append(f"{owner}.{name}")
    called = re.match(r"([a-z]\w*)\(", code)
    if called and called[1] not in functions() | OUTSIDE:
        wrong.append(f"{called[1]}( is no function")
    if re.fullmatch(r"[A-Za-z_][\w.]*(\(.*\))?", code):
        names = re.findall(r"\b[A-Za-z_]\w*", re.sub(r'"[^"]*"', "", code))
        wrong += [name for name in names if name not in words() | OUTSIDE]
    return wrong


def _has(kind: type, name: str) -> bool:
    """Whether a class has a field, an attribute or an instance attribute of that name."""
    fields = getattr(kind, "__dataclass_fields__", {})
    return hasattr(kind, name) or name in fields or f"self.{name} =" in inspect.getsource(kind)


def bad_calls(code: str) -> list[tuple[str, str]]:
    """Calls of public names with arguments that they do not take."""
    try:
        tree = ast.parse(code, mode="eval")
    except SyntaxError:
        return []
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        name = called.removeprefix("jm.")
        if name not in dir(jaxmem) or (name == called and name.islower()):
            continue
        keywords = [k.arg for k in node.keywords if k.arg]
        positional = [a for a in node.args if not isinstance(a, ast.Constant) or a.value is not ...]
        try:
            signature = inspect.signature(getattr(jaxmem, name))
            signature.bind_partial(*positional, **dict.fromkeys(keywords))
        except TypeError as error:
            found.append((name, str(error)))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_is_in_backticks_exists(page):
    wrong = {code: faults(code) for code in inline_code(page)}
    assert not {code: why for code, why in wrong.items() if why}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_are_short(page):
    """120 characters at most; tables, pictures and code may be longer."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    long = [
        line
        for line in text.splitlines()
        if len(line) > 120 and not line.startswith(("|", "[![", "!["))
    ]
    assert not long


def test_faults_are_found():
    """The test can fail: old names, options, files and arguments are seen."""
    for code in (
        "State.notes",
        "per_kind",
        "full(capacity)",
        "quantized(memory, bits=4)",
        "jm.Elephant",
        "jaxmem.memory.base.Reads",
        "jaxmem/memory/pool.py",
        "--omnimem.per-kind",
        "--no-such-option",
        "jm.Recent(96, positions=1)",
        "recent(budget, per_kind=4)",
    ):
        assert faults(code), code
    for code in ("jm.Spec.frame", "--omnimem.lam", "--no-prompt", "jm.Recent(96, sinks=4)"):
        assert not faults(code), code


def test_the_readme_names_every_memory():
    text = (ROOT / "README.md").read_text()
    table = text.partition("| | memories |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(MEMORIES)
    assert set(re.findall(r"(\d+) memories", text)) == {str(len(MEMORIES))}


def test_the_table_of_all_memories_is_what_the_classes_say(monkeypatch):
    """Run `python docs/memory_table.py` after a change of a memory."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    written = importlib.import_module("memory_table")
    text = written.PAGE.read_text()
    assert written.page(text) == text
    assert text.count("\n| [") == len(MEMORIES)
    with pytest.raises(ValueError, match="no place"):
        written.page("")
    with pytest.raises(ValueError, match=r"write docs/memories/elephant\.md"):
        written.link("elephant")
