"""Who may import whom (CONTRIBUTING.md), read from the source; and that importing starts nothing."""

import ast
import pathlib
import subprocess
import sys

import keras_mart

PACKAGE = pathlib.Path(keras_mart.__file__).parent
# Each part may import those further up, never its neighbours; inside a part that is a folder all may import all.
ORDER = (
    {"memory", "randomness", "startup", "typing", "version"},
    {"checks", "files", "clusters", "watch", "copying"},
    {"losses", "threats", "optimizers", "layers", "distribution", "checkpoints", "launching"},
    {"datasets", "zoo", "folding"},
    {"networks"},
    {"attacks"},
    {"methods"},
    {"evaluation"},
    {"callbacks", "serving", "hardening", "plot"},
    {"cli"},
    {"main"},
)
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}


def imported_parts(path):
    """The parts of the package that a file imports, wherever in the file it does so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        parts = (name.partition(".") for name in names)
        # The package itself holds all public names, `export` among them.
        yield from (part.partition(".")[0] or "serving" for package, _, part in parts if package == "keras_mart")


def sources():
    """(part, path) of every file but the package's own __init__, which imports the public names from all parts."""
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if part != "__init__":
            assert part in RANK, f"{part} has no place in the order yet"
            yield part, path


def test_imports_go_one_way():
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {imported}"
        for part, path in sources()
        for imported in imported_parts(path)
        if imported != part and not RANK.get(imported, len(ORDER)) < RANK[part]
    ]
    assert not wrong


def test_importing_runs_no_tensorflow_op():
    # TensorFlow configures devices only as long as nothing has run.
    configure = """
import tensorflow as tf, keras_mart, keras_mart.main
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 3)
assert len(tf.config.list_logical_devices("CPU")) == 3
"""
    process = subprocess.run([sys.executable, "-c", configure], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
